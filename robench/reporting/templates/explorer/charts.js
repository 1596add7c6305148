// Small drawings: bars with intervals, curves, tables of confusion.

function bar({ estimate, low, high }, label = null) {
  const text = Number.isNaN(estimate) ? "–" : `${fixed(estimate, 1)} % (${fixed(low, 1)}–${fixed(high, 1)})`;
  const at = share => `${fixed(share, 1)}%`;
  const drawn = Number.isNaN(estimate) ? [] : [
    element("rect", { class: "bar", x: 0, y: 2, width: at(estimate), height: 10 }),
    element("line", { class: "limits", x1: at(low), x2: at(high), y1: 7, y2: 7 }),
  ];
  const picture = element("svg", { class: "bars", height: 14, "aria-hidden": "true" }, drawn);
  return element("td", { class: "text" }, picture, ` ${label ?? text}`);
}

// Robust accuracy against ε: points {x, label, estimate, low, high}, x rising; the first at 0.
function securityCurve(points, name) {
  const width = 460, height = 220, left = 44, bottom = 34, top = 10, right = 14;
  const most = points.at(-1).x || 1;
  const x = value => left + (value / most) * (width - left - right);
  const y = share => top + (1 - share / 100) * (height - top - bottom);
  const label = (text, attributes) => element("text", attributes, text);
  const grid = [0, 25, 50, 75, 100].flatMap(share => [
    element("line", { class: "grid", x1: left, x2: width - right, y1: y(share), y2: y(share) }),
    label(`${share} %`, { x: left - 6, y: y(share) + 4, "text-anchor": "end" }),
  ]);
  const marks = points.flatMap(point => [
    element("line", { class: "limits", x1: x(point.x), x2: x(point.x), y1: y(point.low), y2: y(point.high) }),
    element("circle", { cx: x(point.x), cy: y(point.estimate), r: 4 },
      element("title", {}, `ε ${point.label}: ${fixed(point.estimate, 1)} %`)),
    label(point.label, { x: x(point.x), y: height - 16, "text-anchor": "middle" }),
  ]);
  const path = points.map(point => `${x(point.x)},${y(point.estimate)}`).join(" ");
  const said = points.map(point => `${fixed(point.estimate, 1)} % at ${point.label}`).join(", ");
  return element("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Robust accuracy of ${name}: ${said}` }, grid,
    element("polyline", { points: path }), marks,
    label("ε", { x: width / 2, y: height - 2, "text-anchor": "middle" }));
}

// Classes against predictions, of the samples at the given places.
function confusion(caption, group, predictions, places) {
  const labels = unpack(group.labels), counts = new Map();
  for (const k of places) {
    const key = `${labels[k]} ${predictions[k]}`;
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  const classes = [...new Set([...labels, ...places.map(k => predictions[k])])].sort((a, b) => a - b);
  const most = Math.max(...counts.values(), 1);
  return table(caption, ["true \\ predicted", ...classes.map(label => className(group, label))],
    classes.filter(label => label >= 0).map(label => [
      element("td", { class: "text" }, element("strong", {}, className(group, label))),
      ...classes.map(predicted => {
        const found = counts.get(`${label} ${predicted}`) ?? 0;
        const strength = Math.round((100 * found) / most);
        const colour = label === predicted ? "var(--good)" : "var(--bad)";
        return element("td", {
          style: `background: color-mix(in srgb, ${colour} ${Math.ceil(strength / 2)}%, transparent)`,
        }, found ? String(found) : "");
      }),
    ]));
}
