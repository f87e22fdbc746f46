
// What the page shows: chips as objects, made once from the columns of the JSON in the page.
const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const PAIRS = DATA.pairs;
const SEEN = new Set(["answered", "cascaded"]);

const INKS = { building: "255,176,32", road: "77,163,255", other: "125,249,255" };  // classes of change

for (const change of DATA.changes) {
  const points = change.rings.flat();
  const [left, top] = [0, 1].map((axis) => points.reduce((least, point) => Math.min(least, point[axis]), Infinity));
  const [right, bottom] = [0, 1].map((axis) => points.reduce((most, point) => Math.max(most, point[axis]), -Infinity));
  Object.assign(change, { x: left, y: top, w: right - left, h: bottom - top });
}

const CHIPS = (() => {
  const { columns, answers, texts } = DATA.chips;
  const chips = columns.id.map((_, number) => {
    const chip = { number };
    for (const name in columns) chip[name] = columns[name][number];
    chip.status = texts[chip.status];
    chip.caption = texts[chip.caption];
    chip.answers = answers.map((name) => [name.slice(7), texts[chip[name]]]);
    chip.classes = new Set();
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
    }
  }
  for (const chip of chips) {
    const words = [chip.id, chip.caption, PAIRS[chip.pair].name, ...chip.classes, ...chip.answers.map((one) => one[1])];
    chip.words = words.join("\n").toLowerCase();
  }
  return chips;
})();

const DETAILED = Object.keys(DATA.details).map((number) => CHIPS[number]);
const CLASSES = [...new Set(CHIPS.flatMap((chip) => [...chip.classes]))].sort();

// What the reader has chosen. `pair` is null for all pairs; `shown` is the pair on the map.
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

const whole = new Intl.NumberFormat("en");
const counted = (number, thing) => `${whole.format(number)} ${thing}${number === 1 ? "" : "s"}`;
const told = (score) => (score === null ? "–" : score.toFixed(2));
const place = (chip) => (chip.lon === null ? `${chip.x + chip.w / 2}, ${chip.y + chip.h / 2}` : `${chip.lon.toFixed(5)}, ${chip.lat.toFixed(5)}`);

const RAMP = DATA.ramp;
function colour(score, alpha = 1) {
  if (score === null) return `rgba(150,156,166,${alpha})`;
  const at = Math.min(Math.max(score, 0), 1) * (RAMP.length - 1);
  const low = RAMP[Math.floor(at)], high = RAMP[Math.ceil(at)], part = at % 1;
  return `rgba(${low.map((one, channel) => Math.round(one + (high[channel] - one) * part)).join(",")},${alpha})`;
}

// Pictures are decoded when they are first wanted; `redraw` is called when they are there.
const decoded = new Map();
function picture(uri, redraw) {
  if (!uri) return null;
  let image = decoded.get(uri);
  if (!image) {
    image = new Image();
    image.waiting = new Set();
    image.onload = () => { for (const one of image.waiting) one(); image.waiting.clear(); };
    image.src = uri;
    decoded.set(uri, image);
  }
  if (image.complete && image.naturalWidth) return image;
  image.waiting.add(redraw);
  return null;
}

// A window of one date into a canvas, from the chip's own picture or else from the overview.
function paintChip(context, chip, date, x, y, width, height, redraw) {
  const own = DATA.details[chip.number];
  const overview = PAIRS[chip.pair].pictures;
  if (own && width > 90) {
    const image = picture(own[date], redraw);
    if (image) context.drawImage(image, x, y, width, height);
    return Boolean(image);
  }
  if (!overview) return false;
  const image = picture(date ? overview.after : overview.before, redraw);
  if (!image) return false;
  const across = image.naturalWidth / overview.extent[0], down = image.naturalHeight / overview.extent[1];
  context.imageSmoothingEnabled = width < chip.w * across * 4;
  context.drawImage(image, chip.x * across, chip.y * down, chip.w * across, chip.h * down, x, y, width, height);
  return true;
}

function* cellsOf(chip, kind) {
  const bits = kind === "road" ? chip.road_cells : chip.building_cells;
  for (let cell = 0; cell < 9; cell++) if (bits & (1 << cell)) yield [Math.floor(cell / 3), cell % 3, DATA.cells[cell]];
}
