// What was put into the page: models, their verdicts, and how both are unpacked and shown.

const contents = JSON.parse(document.getElementById("contents").textContent);
const { groups, rows } = contents;
const OUTCOMES = ["clean error", "broken", "survived", "errored"];
const [CLEAN_ERROR, BROKEN, SURVIVED, ERRORED] = OUTCOMES.keys();
const rowOf = new Map(rows.map(row => [row.id, row]));

const unpack = (() => {
  const kinds = {
    u1: Uint8Array, i1: Int8Array, i2: Int16Array, i4: Int32Array, f4: Float32Array, f2: Uint16Array,
  };
  const half = bits => {
    const sign = bits & 0x8000 ? -1 : 1, power = (bits >> 10) & 31, rest = bits & 1023;
    if (power === 31) return rest ? NaN : sign * Infinity;
    return sign * (power ? 2 ** (power - 15) * (1 + rest / 1024) : (2 ** -14 * rest) / 1024);
  };
  const done = new WeakMap();
  return packed => {
    if (!packed) return null;
    if (!done.has(packed)) {
      const bytes = Uint8Array.from(atob(packed.data), character => character.charCodeAt(0));
      const array = new kinds[packed.type](bytes.buffer);
      done.set(packed, packed.type === "f2" ? Float32Array.from(array, half) : array);
    }
    return done.get(packed);
  };
})();

// An element; properties are set as such, others as attributes. Children that are text stay text.
function element(tag, properties = {}, ...children) {
  const made = tag === "svg" || element.svg.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter(child => child !== null && child !== undefined));
  return made;
}
element.svg = new Set(["g", "line", "path", "circle", "rect", "text", "polyline", "title"]);

// A table; heads are texts, or pairs of a text and its meaning; a cell is a node, a text, or a number.
function table(caption, heads, lines) {
  const cell = value => element("td", { class: typeof value === "number" ? "" : "text" },
    typeof value === "number" ? value.toLocaleString("en") : value);
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    element("table", {}, element("caption", {}, caption),
      element("thead", {}, element("tr", {}, heads.map((head, place) => {
        const [label, meaning] = [head].flat(), below = lines[0]?.[place];
        const isText = typeof below === "string" || below?.className === "text";
        return element("th", { scope: "col", title: meaning, class: isText && "text" }, label);
      }))),
      element("tbody", {}, lines.map(line => element("tr", {}, line.map(value =>
        value instanceof HTMLTableCellElement ? value : cell(value)))))));
}

function number(text, style = "") {
  return element("td", { class: style }, text);
}

// A choice among [value, label] pairs, or groups of them as [label, pairs], under a visible name.
function choice(name, label, options, chosen, change) {
  const option = ([value, text]) => element("option", { value, selected: value === chosen }, text);
  const select = element("select", { name, onchange: event => change(event.target.value) },
    options.map(([value, inner]) => Array.isArray(inner)
      ? element("optgroup", { label: value }, inner.map(option)) : option([value, inner])));
  return element("label", {}, `${label} `, select);
}

// All models by group, for a choice; only those of one group where it is given.
function modelOptions(group = null) {
  return groups.map((item, place) => [item.label, rows
    .filter(row => row.group === place).map(row => [row.id, row.name])])
    .filter(([, models], place) => models.length && (group === null || group === place));
}

const groupOf = row => groups[row.group];
const className = (group, label) => label < 0 ? "–" : group.classes[label] ?? String(label);

function protocol(row, attacks = row.attacks) {
  const own = attacks.filter(attack => !attack.judged);
  return own.length ? own : attacks;
}

// By sample, whether it survived every attack that robench ran, or those given.
function robust(row, attacks = row.attacks) {
  const outcomes = protocol(row, attacks).map(attack => unpack(attack.outcome));
  return Array.from(outcomes[0], (_, k) => outcomes.every(outcome => outcome[k] === SURVIVED));
}

function cleanCorrect(row, attacks = row.attacks) {
  const predictions = attacks.map(attack => unpack(attack.clean));
  const labels = unpack(groupOf(row).labels);
  return Array.from(labels, (label, k) => {
    const known = predictions.map(prediction => prediction[k]).filter(prediction => prediction >= 0);
    return known.length > 0 && known.every(prediction => prediction === label);
  });
}

const count = flags => flags.reduce((sum, flag) => sum + (flag ? 1 : 0), 0);
