// A model's panel: what it is, what speaks against its number, and what every attack did.

function showModel(view) {
  const row = rowOf.get(state.get("model")) ?? rows[0];
  if (!row) return view.replaceChildren(element("p", {}, "There are no records of models here."));
  const group = groupOf(row);
  const attack = row.attacks.find(item => item.name === state.get("attack")) ?? row.attacks[0];
  view.replaceChildren(...[
    element("form", { class: "controls", onsubmit: event => event.preventDefault() },
      choice("model", "Model", modelOptions(), row.id, value => state.set({ model: value }))),
    element("h2", {}, row.name),
    element("p", {}, group.label),
    summary(row),
    element("p", {},
      element("a", { href: state.link({ view: "samples", model: row.id }) }, "Look at its samples"),
      " · ", element("a", { href: state.link({ view: "compare", model: row.id }) }, "Compare it")),
    doubts(row),
    element("div", { class: "side" }, attacksTable(row, group), classesTable(row, group)),
    transfersTable(row, group),
    curve(row),
    element("h3", {}, "One attack"),
    element("form", { class: "controls", onsubmit: event => event.preventDefault() },
      choice("attack", "Attack", row.attacks.map(item => [item.name, item.name]), attack.name,
        value => state.set({ attack: value }))),
    oneAttack(row, group, attack),
    facts("What it is", row.facts),
    row.card.map(([heading, pairs]) => facts(`Card: ${heading}`, pairs)),
    row.card.length ? "" : element("p", { class: "note" },
      "No card of a zoo here has this model's fingerprint, so nothing is said of its provenance."),
  ].flat());
}

function summary(row) {
  const [robustAcc, low, high] = row.robust;
  return element("p", { class: "summary" }, element("strong", {}, `${fixed(robustAcc, 1)} %`),
    ` robust (${fixed(low, 1)}–${fixed(high, 1)}), ${fixed(row.clean[0], 1)} % clean`,
    row.validation ? `; validated: ${row.validation.verdict}` : "");
}

function doubts(row) {
  const reasons = row.validation ? row.validation.reasons.map(reason => element("li", {}, reason)) : [];
  const flags = row.flags.map(flag => element("li", {},
    element("strong", { class: flag.severity === "severe" ? "severe" : "warning" },
      `${flag.name} (${flag.severity})`), `: ${flag.evidence} `,
    element("span", { class: "note" }, `in ${flag.attacks.join(", ")}`)));
  return element("section", {}, element("h3", {}, "Flags"),
    element("p", {}, row.flags.length ? row.validity.replaceAll(";", ", ")
      : `${row.validity.replaceAll(";", ", ")}: no check raised a doubt, which proves nothing.`),
    element("ul", {}, flags, reasons));
}

function attacksTable(row, group) {
  const fought = protocol(row), outcomes = fought.map(attack => unpack(attack.outcome));
  const alone = attack => count(Array.from({ length: group.n }, (_, k) =>
    unpack(attack.outcome)[k] === BROKEN &&
    outcomes.every((outcome, place) => fought[place] === attack || outcome[k] !== BROKEN)));
  const lines = row.attacks.map(attack => {
    const outcome = unpack(attack.outcome), of = kind => count(outcome.map(found => found === kind));
    return [
      element("td", { class: "text", title: attack.about },
        attack.name + (attack.judged ? " (made elsewhere)" : "")),
      bar(wilson(of(SURVIVED), group.n)),
      of(BROKEN), attack.judged ? "–" : alone(attack), of(CLEAN_ERROR), of(ERRORED),
      attack.forwards, attack.backwards, number(fixed(attack.seconds, 1)),
    ];
  });
  return table(`Survivors of each attack, n = ${group.n}`, ["attack", ["survivors", "share, 95 % interval"],
    "broken", ["by it alone", "broken by no other attack"], "clean error", "errored", "forwards",
    "backwards", "seconds"], lines);
}

function transfersTable(row, group) {
  if (!row.transfers.length) return "";
  const lines = [...row.transfers].sort((one, two) => one[2] - two[2])
    .map(([source, attack, survivors, broken, members]) => [
      element("td", { class: "text" }, members ? `${source}, an ensemble` : source),
      element("td", { class: "text" }, attack), bar(wilson(survivors, group.n)), broken]);
  return table(`Inputs made for other models, n = ${group.n}`,
    ["made for", "by", ["survivors", "share, 95 % interval"], "broken"], lines);
}

function curve(row) {
  const own = groupOf(row);
  const family = rows.filter(other => other.name === row.name && other.fingerprint === row.fingerprint)
    .filter(other => ["data", "norm", "seed"].every(name => groupOf(other)[name] === own[name]))
    .sort((one, two) => groupOf(one).radius - groupOf(two).radius);
  if (family.length < 2) return element("p", { class: "note" },
    "A security curve needs records at two radii or more: robench run MODEL --eps 0,1/255,2/255");
  const point = ([estimate, low, high], x, label) => ({ estimate, low, high, x, label });
  return element("section", {}, element("h3", {}, "Security curve"), securityCurve([
    point(family[0].clean, 0, "0"),
    ...family.map(other => point(other.robust, groupOf(other).radius, groupOf(other).eps)),
  ], row.name));
}

function classesTable(row, group) {
  const labels = unpack(group.labels), survived = robust(row), clean = cleanCorrect(row);
  const found = new Map();
  labels.forEach((label, k) => {
    const held = found.get(label) ?? { n: 0, clean: 0, robust: 0 };
    held.n++;
    held.clean += clean[k];
    held.robust += survived[k];
    found.set(label, held);
  });
  const lines = [...found].sort(([, one], [, two]) => one.robust / one.n - two.robust / two.n);
  return table("Classes, the least robust first", ["class", "n", "clean", "robust in the worst case"],
    lines.map(([label, held]) => [className(group, label), held.n,
      bar(wilson(held.clean, held.n)), bar(wilson(held.robust, held.n))]));
}

function oneAttack(row, group, attack) {
  const parts = [element("p", { class: "note" }, attack.about || "a cascade of stages")];
  if (attack.stages.length) parts.push(table(`Stages of ${attack.name}, in their order`,
    ["stage", "attempted", "broken", "errored", "forwards", "backwards", "seconds", "note"],
    attack.stages.map(([name, ...rest]) => [name, ...rest.slice(0, 5), number(fixed(rest[5], 1)), rest[6]])));
  if (attack.audit) parts.push(facts("Audit", Object.entries(attack.audit)
    .map(([name, value]) => [name.replaceAll("_", " "), value === null ? "–" : String(value)])));
  const names = Object.keys(attack.metrics), tables = [];
  if (names.length) tables.push(table(
    `Attention and features${attack.map ? `: ${attack.map}` : ""}`,
    ["metric", "mean", "of broken", "of survivors", "n"],
    names.map(name => {
      const [label, meaning] = contents.metrics[name], [mean, broken, survived, n] = attack.metrics[name];
      return [element("td", { class: "text", title: meaning }, label),
        ...[mean, broken, survived].map(value => number(fixed(value, 4))), n];
    })));
  else tables.push(element("p", { class: "note" }, "This record has no attention or feature metrics."));
  const predictions = unpack(attack.prediction);
  if (predictions) {
    const outcome = unpack(attack.outcome), places = [...outcome.keys()]
      .filter(k => outcome[k] === BROKEN || outcome[k] === SURVIVED);
    tables.push(confusion(`Classes under ${attack.name}, of samples right without it`, group, predictions,
      places));
  }
  parts.push(element("div", { class: "side" }, tables), facts("Record", attack.facts));
  return element("section", {}, parts);
}

function facts(heading, pairs) {
  const value = text => /^https:\/\/\S+$/.test(text)
    ? element("a", { href: text, rel: "noreferrer" }, text) : text;
  return element("details", {}, element("summary", {}, heading),
    element("dl", {}, pairs.flatMap(([name, text]) =>
      [element("dt", {}, name), element("dd", {}, value(text))])));
}
