// Samples: what became of each, under one attack or the worst of all; of two models side by side.

const A_PAGE = 12;

// Of sample k in the worst case: an outcome, and what broke it, attacks with the stage that did.
function fate(row, attack, k) {
  const fought = attack ? [attack] : protocol(row);
  const outcomes = fought.map(one => unpack(one.outcome)[k]);
  const worst = [CLEAN_ERROR, BROKEN, ERRORED].find(kind => outcomes.includes(kind)) ?? SURVIVED;
  const broke = fought.filter((_, place) => outcomes[place] === BROKEN).map(one => {
    const stage = unpack(one.stage)?.[k] ?? -1, name = one.stage_names[stage];
    return name && name !== one.name ? `${one.name} (${name})` : one.name;
  });
  return { outcome: worst, broke };
}

// The attack whose input is shown: what was asked for; else one that broke it, with a picture if there is.
function attackShown(row, attack, k) {
  if (attack) return attack;
  const fought = protocol(row), broke = fought.filter(one => unpack(one.outcome)[k] === BROKEN);
  const pool = broke.length ? broke : fought;
  return pool.find(one => has(attackedSet(row, one), k)) ?? pool[0];
}

function showSamples(view) {
  const row = rowOf.get(state.get("model")) ?? rows[0];
  if (!row) return view.replaceChildren(element("p", {}, "There are no records of models here."));
  const group = groupOf(row), pool = rows.filter(other => other.group === row.group && other !== row);
  const beside = pool.find(other => other.id === state.get("beside"));
  const shown = [row, ...(beside ? [beside] : [])];
  const attackOf = one => one.attacks.find(attack => attack.name === state.get("attack"));
  const fates = shown.map(one => Array.from(group.ids, (_, k) => fate(one, attackOf(one), k)));
  const found = choose(shown, fates, group, attackOf);
  const from = Math.min(Number(state.get("from", "0")) || 0, Math.max(0, found.length - 1));
  const start = from - (from % A_PAGE), page = found.slice(start, start + A_PAGE);
  view.replaceChildren(
    sampleControls(row, beside, pool, group, fates, attackOf),
    element("p", {}, element("output", { "aria-live": "polite" }, found.length
      ? `${found.length} of ${group.n} samples; ${start + 1} to ${start + page.length} are shown` +
        (attackOf(row) ? "" : ", each under an attack that broke it, if one did")
      : "No sample fits. Choose other outcomes or classes.")),
    turn(start, found.length),
    element("div", { class: beside ? "samples pair" : "samples" }, page.map(k => card(shown, fates, attackOf, group, k))),
    element("p", { class: "note" }, kept(row, group)),
  );
}

// Places of the samples that fit what is asked for.
function choose(shown, fates, group, attackOf) {
  const labels = unpack(group.labels), [label, outcome, broke, query] =
    ["class", "outcome", "broke", "id"].map(name => state.get(name));
  const resists = fates.map(own => own.map(one => one.outcome === SURVIVED));
  const outcomes = {
    differ: k => shown.length > 1 && resists[0][k] !== resists[1][k],
    "only-first": k => shown.length > 1 && resists[0][k] && !resists[1][k],
    "only-second": k => shown.length > 1 && !resists[0][k] && resists[1][k],
  };
  const fits = outcomes[outcome] ?? (k => outcome === "" || OUTCOMES[fates[0][k].outcome] === outcome);
  const pictured = k => state.get("pictures") === "" ||
    shown.some(row => has(attackedSet(row, attackShown(row, attackOf(row), k)), k));
  return [...group.ids.keys()].filter(k => (label === "" || String(labels[k]) === label) && fits(k) &&
    (broke === "" || fates[0][k].broke.includes(broke)) && group.ids[k].includes(query) && pictured(k));
}

function sampleControls(row, beside, pool, group, fates, attackOf) {
  const again = changes => state.set({ from: "", ...changes });
  const any = (pairs, label = "any") => [["", label], ...pairs];
  const labels = [...new Set(unpack(group.labels))].sort((a, b) => a - b);
  const broke = [...new Set(fates[0].flatMap(one => one.broke))].sort();
  const differ = beside ? [["differ", "the two differ"], ["only-first", `only ${row.name} resists`],
    ["only-second", `only ${beside.name} resists`]] : [];
  const pictured = element("input", { type: "checkbox", name: "pictures", checked: state.get("pictures") !== "",
    onchange: event => again({ pictures: event.target.checked ? "yes" : "" }) });
  return element("form", { class: "controls", onsubmit: event => event.preventDefault() },
    choice("model", "Model", modelOptions(), row.id, value => again({ model: value, beside: "" })),
    choice("beside", "Beside", any(pool.map(other => [other.id, other.name]), "none"), beside?.id ?? "",
      value => again({ beside: value, outcome: value ? "differ" : "" })),
    choice("attack", "Attack", any(row.attacks.map(one => [one.name, one.name]), "the worst case"),
      attackOf(row)?.name ?? "", value => again({ attack: value, broke: "" })),
    choice("class", "Class", any(labels.map(label => [String(label), className(group, label)])),
      state.get("class"), value => again({ class: value })),
    choice("outcome", "Outcome", any([...OUTCOMES.map(name => [name, name]), ...differ]),
      state.get("outcome"), value => again({ outcome: value })),
    choice("broke", "Broken by", any(broke.map(name => [name, name])), state.get("broke"),
      value => again({ broke: value })),
    element("label", {}, "Id ", element("input", { type: "search", name: "id", value: state.get("id"),
      onchange: event => again({ id: event.target.value }) })),
    element("label", {}, pictured, " with an adversarial picture"));
}

function turn(start, total) {
  const button = (name, label, to, possible) => element("button", { type: "button", name,
    disabled: !possible, onclick: () => state.set({ from: to > 0 ? String(to) : "" }) }, label);
  return element("p", { class: "turn" }, button("earlier", "← Earlier", start - A_PAGE, start > 0), " ",
    button("later", "Later →", start + A_PAGE, start + A_PAGE < total));
}

function card(shown, fates, attackOf, group, k) {
  const label = unpack(group.labels)[k];
  const parts = shown.map((row, which) => {
    const attack = attackShown(row, attackOf(row), k), { outcome, broke } = fates[which][k];
    const drawn = pictures(row, attack, k).map(([name, canvas]) =>
      element("figure", {}, canvas, element("figcaption", {}, name)));
    const at = name => unpack(attack[name])?.[k];
    const clean = unpack(attack.clean)[k], margin = unpack(row.margin)[k];
    const lines = [`${OUTCOMES[outcome]}${broke.length ? ` by ${broke.join(", ")}` : ""}`,
      `clean: ${className(group, clean)} (margin ${short(margin)})`];
    if (at("prediction") !== undefined && (outcome === BROKEN || outcome === SURVIVED))
      lines.push(`${attack.name}: ${className(group, at("prediction"))} (margin ${short(at("margin"))}, ` +
        `size ${short(at("size"))})`);
    return element("div", {}, shown.length > 1 ? element("h4", {}, row.name) : null,
      element("div", { class: "pictures" }, drawn),
      lines.map((line, place) => element("div", { class: place ? "" : `outcome-${outcome}` }, line)));
  });
  const heading = `${group.ids[k]}, true class ${className(group, label)}`;
  return element("article", { "aria-label": heading }, element("h3", {}, heading),
    element("div", { class: "side" }, parts));
}

// What is kept of these samples, what is not, and how to keep it.
function kept(row, group) {
  const clean = cleanSet(row)?.at ? unpack(cleanSet(row).at).length : 0;
  const stride = cleanSet(row)?.stride ?? 1;
  const sets = row.attacks.map(attack => attackedSet(row, attack)).filter(Boolean);
  const most = Math.max(0, ...sets.map(set => set.at ? unpack(set.at).length : 0));
  const maps = Math.max(0, ...sets.map(set => set.maps ? unpack(set.maps.at).length : 0));
  return `In this page: clean images of ${clean} of ${group.n} samples, adversarial ones of at most ${most} ` +
    `for each attack on ${row.name}, attention maps of at most ${maps}. ` +
    (clean < group.n ? "`robench leaderboard --samples` adds the clean images of data sets that robench knows. " : "") +
    (most < group.n ? "`robench run … --save-adversarial` keeps all adversarial inputs; else records keep a few. " : "") +
    (contents.detailed ? "" : "Predictions and margins under attack were left out, for the page's size. ") +
    "Perturbations are drawn in 15 levels; maps are kept of a record's few samples alone." +
    (stride > 1 ? ` Every ${stride}th pixel is shown.` : "");
}
