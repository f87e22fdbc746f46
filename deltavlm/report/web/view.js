
// How the pixels of a pair lie on the screen: screen = grid * zoom + offset.
const view = { zoom: 1, x: 0, y: 0, width: 1, height: 1, split: 0.5, moved: false };

const gridSize = () => {
  const pair = PAIRS[state.shown];
  return [Math.max(1, pair ? pair.width : 1), Math.max(1, pair ? pair.height : 1)];
};
const fitZoom = () => Math.min(view.width / gridSize()[0], view.height / gridSize()[1]);

function fit() {
  const [width, height] = gridSize();
  view.zoom = fitZoom() * 0.96;
  view.x = (view.width - width * view.zoom) / 2;
  view.y = (view.height - height * view.zoom) / 2;
  view.moved = false;
  draw();
}

// Some of the pair always stays in sight.
function keepInSight() {
  const [width, height] = gridSize();
  const across = Math.min(80, view.width / 3), down = Math.min(80, view.height / 3);
  view.x = Math.min(view.width - across, Math.max(across - width * view.zoom, view.x));
  view.y = Math.min(view.height - down, Math.max(down - height * view.zoom, view.y));
}

function zoomAt(factor, x = view.width / 2, y = view.height / 2) {
  const zoom = Math.min(Math.max(view.zoom * factor, fitZoom() * 0.5), Math.max(24, fitZoom() * 4));
  view.x = x - (x - view.x) * (zoom / view.zoom);
  view.y = y - (y - view.y) * (zoom / view.zoom);
  view.zoom = zoom;
  view.moved = true;
  keepInSight();
  draw();
}

function pan(right, down) {
  view.x += right;
  view.y += down;
  view.moved = true;
  keepInSight();
  draw();
}

// The offset that brings a place into the middle, or as near to it as leaves no empty ground beside the pair.
function centred(at, whole, room) {
  const length = whole * view.zoom, margin = 16;
  if (length + 2 * margin <= room) return (room - length) / 2;
  return Math.min(margin, Math.max(room - length - margin, room / 2 - at * view.zoom));
}

// Brings a chip into sight, near enough to see what is in it.
function show(chip, near) {
  const least = near ? Math.min(view.width, view.height) / 4 : 0;
  if (chip.w * view.zoom < least) view.zoom = Math.min(least / chip.w, Math.max(24, fitZoom()));
  const left = chip.x * view.zoom + view.x, top = chip.y * view.zoom + view.y;
  const size = [chip.w * view.zoom, chip.h * view.zoom];
  const outside = left < 12 || top < 12 || left + size[0] > view.width - 12 || top + size[1] > view.height - 12;
  view.moved = true;
  if (outside) {
    const [width, height] = gridSize();
    view.x = centred(chip.x + chip.w / 2, width, view.width);
    view.y = centred(chip.y + chip.h / 2, height, view.height);
  }
  draw();
}

const toGrid = (x, y) => [(x - view.x) / view.zoom, (y - view.y) / view.zoom];

function chipAt(x, y) {
  const [column, row] = toGrid(x, y);
  let found = null, nearest = Infinity;
  for (const chip of state.listed) {
    if (chip.pair !== state.shown) continue;
    const right = column - chip.x, down = row - chip.y;
    if (right < 0 || down < 0 || right > chip.w || down > chip.h) continue;
    const away = Math.hypot(right - chip.w / 2, down - chip.h / 2);  // chips may overlap
    if (away < nearest) [found, nearest] = [chip, away];
  }
  return found;
}

// The next chip from the chosen one in a direction: near, and not far aside.
function neighbour(right, down) {
  const from = state.chosen;
  if (!from || from.pair !== state.shown) return state.rows.find((chip) => chip.pair === state.shown) || null;
  let found = null, least = Infinity;
  for (const chip of state.listed) {
    if (chip.pair !== from.pair || chip === from) continue;
    const x = chip.x - from.x, y = chip.y - from.y;
    const ahead = x * right + y * down, aside = Math.abs(x * down) + Math.abs(y * right);
    const cost = ahead + 3 * aside;
    if (ahead > 0 && aside <= ahead * 2 && cost < least) [found, least] = [chip, cost];
  }
  return found;
}

// The longest of 1, 2, 5, 10, ... metres that fits into `most` pixels of the screen.
function scaleBar(gsd, most) {
  const metres = (gsd / view.zoom) * most;
  const power = 10 ** Math.floor(Math.log10(metres));
  const length = [5, 2, 1].map((step) => step * power).find((one) => one <= metres) || power;
  const words = length >= 1000 ? `${length / 1000} km` : length >= 1 ? `${length} m` : `${Math.round(length * 100)} cm`;
  return [length / (gsd / view.zoom), words];
}
