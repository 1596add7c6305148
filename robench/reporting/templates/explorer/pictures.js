// Pictures of one sample, drawn from the packed ones: clean, adversarial, difference, attention.

const LEVELS = 7, MAP_SIZE = 96;

// The pixels of one image of a packed set, by its place among the samples; null: it is not there.
const pixelsOf = (() => {
  const decoded = new WeakMap(), placed = new WeakMap();
  const load = async set => {
    const image = new Image();
    image.src = set.sprite;
    await image.decode();
    const canvas = new OffscreenCanvas(image.width, image.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context;
  };
  return async (set, k) => {
    const place = set ? placeIn(set, k) : -1;
    if (place < 0) return null;
    if (!decoded.has(set)) decoded.set(set, load(set));
    const context = await decoded.get(set), [height, width] = set.shape;
    const columns = context.canvas.width / width;
    return context.getImageData((place % columns) * width, Math.floor(place / columns) * height,
      width, height).data;
  };
  function placeIn(set, k) {
    if (!placed.has(set)) placed.set(set, new Map(Array.from(unpack(set.at), (at, place) => [at, place])));
    return placed.get(set).get(k) ?? -1;
  }
})();

const cleanSet = row => contents.pictures.clean[groupOf(row).data];
const attackedSet = (row, attack) => contents.pictures.attacked[row.id]?.[attack.name];
const has = (set, k) => Boolean(set?.at && unpack(set.at).includes(k));

// Canvases of sample k of a row under an attack, as [what it shows, canvas]; filled when decoded.
function pictures(row, attack, k) {
  const set = attackedSet(row, attack), clean = cleanSet(row), made = [];
  const add = (name, size, draw) => {
    const canvas = element("canvas", { width: size[1], height: size[0], role: "img",
      "aria-label": `${name}, ${groupOf(row).ids[k]}, ${row.name}` });
    made.push([name, canvas]);
    draw(canvas.getContext("2d"));
  };
  if (has(clean, k)) {
    add("clean", clean.shape, context => paint(context, clean, k, null));
    if (has(set, k)) {
      add("adversarial", clean.shape, context => paint(context, clean, k, set));
      add("difference", clean.shape, context => paintDifference(context, set, k, row));
    }
    const place = set?.maps ? unpack(set.maps.at).indexOf(k) : -1;
    if (place >= 0) for (const which of ["clean", "adversarial"])
      add(`attention, ${which}`, [MAP_SIZE, MAP_SIZE], context => paintMap(context, clean, k, set.maps, which, place));
  }
  return made;
}

const changeAt = (packed, scale) => (packed / LEVELS - 1) * scale;

async function paint(context, clean, k, set) {
  const pixels = new Uint8ClampedArray(await pixelsOf(clean, k)), [height, width] = clean.shape;
  const change = await pixelsOf(set, k);
  if (change) {
    const scale = 255 * unpack(set.scale)[unpack(set.at).indexOf(k)];
    for (let at = 0; at < pixels.length; at++) if (at % 4 < 3) pixels[at] += changeAt(change[at], scale);
  }
  context.putImageData(new ImageData(pixels, width, height), 0, 0);
}

// Grey is no change; black and white are the radius, or the sample's largest entry outside Linf.
async function paintDifference(context, set, k, row) {
  const change = new Uint8ClampedArray(await pixelsOf(set, k)), [height, width] = set.shape;
  const { norm, radius } = groupOf(row), largest = unpack(set.scale)[unpack(set.at).indexOf(k)];
  const scale = largest / (norm === "Linf" ? radius : largest || 1);
  for (let at = 0; at < change.length; at++)
    if (at % 4 < 3) change[at] = 127.5 + 127.5 * changeAt(change[at], scale);
  context.putImageData(new ImageData(change, width, height), 0, 0);
}

// Dark blue to yellow, as the figures have it, over the greyed image.
const SHADES = [[0, 34, 78], [87, 93, 109], [124, 123, 120], [186, 172, 104], [254, 232, 56]];

async function paintMap(context, clean, k, maps, which, place) {
  const [height, width] = clean.shape, [rows, columns] = maps.shape;
  const pixels = await pixelsOf(clean, k), cells = unpack(maps[which]).subarray(place * rows * columns);
  for (let at = 0; at < height * width; at++) {
    const grey = 90 + (165 / 255 / 3) * (pixels[4 * at] + pixels[4 * at + 1] + pixels[4 * at + 2]);
    context.fillStyle = `rgb(${grey} ${grey} ${grey})`;
    fill(Math.floor(at / width), at % width, height, width);
  }
  context.globalAlpha = 0.65;
  const empty = !cells.subarray(0, rows * columns).some(Boolean);
  for (let at = 0; at < rows * columns && !empty; at++) {
    const shade = (cells[at] / 255) * (SHADES.length - 1), low = Math.min(Math.floor(shade), 3);
    const colour = SHADES[low].map((value, c) => value + (shade - low) * (SHADES[low + 1][c] - value));
    context.fillStyle = `rgb(${colour.join(" ")})`;
    fill(Math.floor(at / columns), at % columns, rows, columns);
  }
  context.globalAlpha = 1;
  if (empty) {
    context.fillStyle = "black";
    context.fillText("empty", MAP_SIZE / 2 - 14, MAP_SIZE / 2);
  }
  function fill(row, column, rowCount, columnCount) {
    const edge = (number, of) => Math.round((number * MAP_SIZE) / of);
    const [x, y] = [edge(column, columnCount), edge(row, rowCount)];
    context.fillRect(x, y, edge(column + 1, columnCount) - x, edge(row + 1, rowCount) - y);
  }
}
