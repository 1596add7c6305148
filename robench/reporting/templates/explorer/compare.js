// Two models on the same samples: differences with their intervals and tests, as `robench compare`
// gives them, worked out here from the verdicts.

// Of two accuracies, second minus first, from verdicts by sample; in percent.
function difference(quantity, first, second) {
  const counts = pairedCounts(second, first), n = first.length;
  const { estimate, low, high } = tangoInterval(counts), p = mcnemar(counts);
  const share = (counts.onlyFirst + counts.onlySecond) / n, least = smallestDifference(n, share);
  return {
    quantity, p, n,
    baseline: (100 * count(first)) / n,
    value: (100 * count(second)) / n,
    difference: { estimate: 100 * estimate, low: 100 * low, high: 100 * high },
    detectable: least === null ? null : 100 * least,
    verdict: p >= 0.05 ? "not shown" : estimate > 0 ? "better" : "worse",
  };
}

// Accuracies of two models of one group under the attacks that both met with the same parameters.
function compared(first, second) {
  const notes = [], pairs = [];
  for (const name of [...new Set([...first.attacks, ...second.attacks].map(a => a.name))].sort()) {
    const [one, two] = [first, second].map(row => row.attacks.find(attack => attack.name === name));
    // In the order in which `robench compare` names them.
    const lacking = !two ? second : !one ? first : null;
    if (lacking) notes.push(`${name} is left out: there is no record of it for ${lacking.name}`);
    else if (one.identity !== two.identity)
      notes.push(`${name} is left out: its parameters differ between the two`);
    else pairs.push([one, two]);
  }
  if (!pairs.length) return { notes, lines: [], only: null };
  const [ours, theirs] = [0, 1].map(place => pairs.map(pair => pair[place]));
  const survived = attack => Array.from(unpack(attack.outcome), outcome => outcome === SURVIVED);
  const robustFirst = robust(first, ours), robustSecond = robust(second, theirs);
  const lines = [
    difference("clean_acc", cleanCorrect(first, ours), cleanCorrect(second, theirs)),
    difference("robust_acc", robustFirst, robustSecond),
    ...pairs.map(([one, two]) => difference(one.column, survived(one), survived(two))),
  ];
  return { notes, lines, only: pairedCounts(robustFirst, robustSecond) };
}

function showCompare(view) {
  const first = rowOf.get(state.get("model")) ?? rows[0];
  const others = first ? rows.filter(row => row.group === first.group && row !== first) : [];
  if (!others.length) return view.replaceChildren(element("p", {},
    "There are no two models here that were evaluated on the same samples."));
  const second = others.find(row => row.id === state.get("with")) ?? others[0];
  const { notes, lines, only } = compared(first, second);
  const name = row => first.name === second.name ? `${row.name}@${row.weights.slice(0, 8)}` : row.name;
  const pair = others.map(row => [row.id, row.name]);
  const controls = element("form", { class: "controls", onsubmit: event => event.preventDefault() },
    choice("model", "Baseline", modelOptions(), first.id, value => state.set({ model: value })),
    choice("with", "Model", pair, second.id, value => state.set({ with: value })),
    element("button", { type: "button", name: "swap",
      onclick: () => state.set({ model: second.id, with: first.id }) }, "Swap"));
  const caption = `${name(second)} against ${name(first)}, on ${groupOf(first).label}`;
  const shown = table(caption, ["quantity", [name(first), "the baseline"], name(second),
    ["difference (95 % interval)", "Tango's interval, points"], ["p", "exact McNemar test, two-sided"],
    "verdict"], lines.map(line => [line.quantity, number(fixed(line.baseline, 1)),
    number(fixed(line.value, 1)), number(signedInterval(line.difference, 1)), number(pValue(line.p)),
    line.verdict]));
  view.replaceChildren(controls, element("h2", {}, "Comparison"), shown, ...(only ? said() : []),
    element("ul", {}, notes.map(note => element("li", {}, note))),
    element("p", { class: "note" }, "On the command line, ",
      element("code", {}, `robench compare ${name(first)} ${name(second)}`),
      " also compares the worst classes and the metrics, and corrects p for several models."));

  function said() {
    const link = (outcome, text) => element("a", { href: state.link({ view: "samples", model: first.id,
      beside: second.id, outcome, attack: "", from: "" }) }, text);
    const { n, detectable } = lines.find(line => line.quantity === "robust_acc");
    return [
      element("p", {}, "Samples that ", link("only-first", `only ${name(first)} resists: ${only.onlyFirst}`),
        "; ", link("only-second", `only ${name(second)}: ${only.onlySecond}`), "."),
      element("p", {}, detectable === null
        ? "At this n no difference of robust accuracy could have been shown."
        : `At n = ${n} a true difference of robust accuracy of ${fixed(detectable, 1)} points or more ` +
          "is shown with 80 % power."),
    ];
  }
}
