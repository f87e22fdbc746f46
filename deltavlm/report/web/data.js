
// Data of the page: chips as objects, built once from the columns of the embedded JSON.
const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const PAIRS = DATA.pairs;
const ANSWERED = new Set(["answered", "cascaded"]);

const CLASS_COLOURS = Object.fromEntries(Object.entries(DATA.classColours).map(([name, rgb]) => [name, rgb.join(",")]));

for (const change of DATA.changes) {
  const points = change.rings.flat();
  const [left, top] = [0, 1].map((axis) => points.reduce((min, point) => Math.min(min, point[axis]), Infinity));
  const [right, bottom] = [0, 1].map((axis) => points.reduce((max, point) => Math.max(max, point[axis]), -Infinity));
  Object.assign(change, { x: left, y: top, w: right - left, h: bottom - top });
}

const CHIPS = (() => {
  const { columns, answers, texts } = DATA.chips;
  const chips = columns.id.map((_, number) => {
    const chip = { number };
    for (const name in columns) chip[name] = columns[name][number];
    chip.status = texts[chip.status];
    for (const name of ["caption", "verdict", "note"]) chip[name] = texts[chip[name]];
    if (columns.evidence) chip.evidence = texts[chip.evidence];
    chip.conflicts = DATA.rules.filter((_, rule) => chip.conflicts & (1 << rule));
    chip.answers = answers.map((name) => [name.slice(7), texts[chip[name]]]);
    chip.classes = new Set();
    chip.kinds = new Set();
    if (chip.buildings > 0 || chip.building_cells) chip.classes.add("building");
    if (chip.roads > 0 || chip.road_cells) chip.classes.add("road");
    chip.changes = [];
    return chip;
  });
  const byName = new Map(chips.map((chip) => [`${chip.pair} ${chip.id}`, chip]));
  for (const change of DATA.changes) {
    for (const id of change.chips) {
      const chip = byName.get(`${change.pair} ${id}`);
      if (!chip) continue;
      chip.changes.push(change);
      chip.classes.add(change.class);
      chip.kinds.add(change.kind.replaceAll("_", " "));
    }
  }
  for (const chip of chips) {
    const words = [chip.id, chip.caption, PAIRS[chip.pair].name, ...chip.classes, ...chip.kinds, ...chip.conflicts.map(([name]) => name), ...chip.answers.map(([, text]) => text)];
    chip.words = words.join("\n").toLowerCase();
  }
  return chips;
})();

const DETAILED = Object.keys(DATA.details).map((number) => CHIPS[number]);
const CLASSES = [...new Set(CHIPS.flatMap((chip) => [...chip.classes]))].sort();

// State of the page. `pair` is null for all pairs; `shown` is the pair on the map.
const state = { pair: PAIRS.length === 1 ? 0 : null, shown: 0, chosen: null, open: false, rows: [], listed: new Set() };

function make(tag, settings = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(settings)) {
    if (key in element && typeof value !== "string") element[key] = value;
    else if (key === "text") element.textContent = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function svg(tag, settings = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(settings)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const integers = new Intl.NumberFormat("en");
const decimals = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const pluralize = (number, noun) => `${integers.format(number)} ${noun}${number === 1 ? "" : "s"}`;
const formatArea = (km2) => (km2 >= 0.1 ? `${+km2.toPrecision(3)} km²` : `${integers.format(Math.round(km2 * 1e6))} m²`);
const formatScore = (score) => (score === null ? "–" : score.toFixed(2));
const formatPosition = (chip, digits = 5) => (chip.lon === null ? `${chip.x + chip.w / 2}, ${chip.y + chip.h / 2}` : `${chip.lon.toFixed(digits)}, ${chip.lat.toFixed(digits)}`);

const RAMP = DATA.ramp;
function colour(score, alpha = 1) {
  if (score === null) return `rgba(150,156,166,${alpha})`;
  const position = Math.min(Math.max(score, 0), 1) * (RAMP.length - 1);
  const low = RAMP[Math.floor(position)], high = RAMP[Math.ceil(position)], fraction = position % 1;
  return `rgba(${low.map((value, channel) => Math.round(value + (high[channel] - value) * fraction)).join(",")},${alpha})`;
}

// Decode images on first use; `redraw` is called once an image is ready.
const decoded = new Map();
function picture(uri, redraw) {
  if (!uri) return null;
  let image = decoded.get(uri);
  if (!image) {
    image = new Image();
    image.waiting = new Set();
    image.onload = () => { for (const callback of image.waiting) callback(); image.waiting.clear(); };
    image.src = uri;
    decoded.set(uri, image);
  }
  if (image.complete && image.naturalWidth) return image;
  image.waiting.add(redraw);
  return null;
}

// Draw one date of a chip into a canvas, from its detail image if it has one, else from the overview.
function paintChip(context, chip, date, x, y, width, height, redraw) {
  const detailUris = DATA.details[chip.number];
  const overview = PAIRS[chip.pair].pictures;
  if (detailUris && width > 90) {
    const image = picture(detailUris[date], redraw);
    if (image) context.drawImage(image, x, y, width, height);
    return Boolean(image);
  }
  if (!overview) return false;
  const image = picture(date ? overview.after : overview.before, redraw);
  if (!image) return false;
  const scaleX = image.naturalWidth / overview.extent[0], scaleY = image.naturalHeight / overview.extent[1];
  context.imageSmoothingEnabled = width < chip.w * scaleX * 4;
  context.drawImage(image, chip.x * scaleX, chip.y * scaleY, chip.w * scaleX, chip.h * scaleY, x, y, width, height);
  return true;
}

function* cellsOf(chip, kind) {
  const bits = kind === "road" ? chip.road_cells : chip.building_cells;
  for (let cell = 0; cell < 9; cell++) if (bits & (1 << cell)) yield [Math.floor(cell / 3), cell % 3, DATA.cells[cell]];
}
