
// View transform from grid pixels to the screen: screen = grid * zoom + offset.
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

// Clamp the offset so that a part of the pair stays visible.
function clampOffset() {
  const [width, height] = gridSize();
  const marginX = Math.min(80, view.width / 3), marginY = Math.min(80, view.height / 3);
  view.x = Math.min(view.width - marginX, Math.max(marginX - width * view.zoom, view.x));
  view.y = Math.min(view.height - marginY, Math.max(marginY - height * view.zoom, view.y));
}

function zoomAt(factor, x = view.width / 2, y = view.height / 2) {
  const zoom = Math.min(Math.max(view.zoom * factor, fitZoom() * 0.5), Math.max(24, fitZoom() * 4));
  view.x = x - (x - view.x) * (zoom / view.zoom);
  view.y = y - (y - view.y) * (zoom / view.zoom);
  view.zoom = zoom;
  view.moved = true;
  clampOffset();
  draw();
}

function pan(right, down) {
  view.x += right;
  view.y += down;
  view.moved = true;
  clampOffset();
  draw();
}

// Offset along one axis that centres `position` in the view, as far as leaves no empty space beside the pair.
function centredOffset(position, gridLength, viewLength) {
  const length = gridLength * view.zoom, margin = 16;
  if (length + 2 * margin <= viewLength) return (viewLength - length) / 2;
  return Math.min(margin, Math.max(viewLength - length - margin, viewLength / 2 - position * view.zoom));
}

// Pan to a chip if it is outside the view; with `near`, zoom in until it is large enough to inspect.
function show(chip, near) {
  const minSize = near ? Math.min(view.width, view.height) / 4 : 0;
  if (chip.w * view.zoom < minSize) view.zoom = Math.min(minSize / chip.w, Math.max(24, fitZoom()));
  const left = chip.x * view.zoom + view.x, top = chip.y * view.zoom + view.y;
  const size = [chip.w * view.zoom, chip.h * view.zoom];
  const outside = left < 12 || top < 12 || left + size[0] > view.width - 12 || top + size[1] > view.height - 12;
  view.moved = true;
  if (outside) {
    const [width, height] = gridSize();
    view.x = centredOffset(chip.x + chip.w / 2, width, view.width);
    view.y = centredOffset(chip.y + chip.h / 2, height, view.height);
  }
  draw();
}

const toGrid = (x, y) => [(x - view.x) / view.zoom, (y - view.y) / view.zoom];

function chipAt(x, y) {
  const [column, row] = toGrid(x, y);
  let hit = null, nearest = Infinity;
  for (const chip of state.listed) {
    if (chip.pair !== state.shown) continue;
    const right = column - chip.x, down = row - chip.y;
    if (right < 0 || down < 0 || right > chip.w || down > chip.h) continue;
    const distance = Math.hypot(right - chip.w / 2, down - chip.h / 2);  // chips may overlap
    if (distance < nearest) [hit, nearest] = [chip, distance];
  }
  return hit;
}

// Neighbour of the selected chip in a direction: the nearest one, where distance across the direction counts triple.
function neighbour(right, down) {
  const from = state.chosen;
  if (!from || from.pair !== state.shown) return state.rows.find((chip) => chip.pair === state.shown) || null;
  let best = null, minCost = Infinity;
  for (const chip of state.listed) {
    if (chip.pair !== from.pair || chip === from) continue;
    const x = chip.x - from.x, y = chip.y - from.y;
    const along = x * right + y * down, across = Math.abs(x * down) + Math.abs(y * right);
    const cost = along + 3 * across;
    if (along > 0 && across <= along * 2 && cost < minCost) [best, minCost] = [chip, cost];
  }
  return best;
}

// Scale bar: the longest of 1, 2, 5, 10, ... metres that fits into `maxWidth` screen pixels.
function scaleBar(gsd, maxWidth) {
  const metres = (gsd / view.zoom) * maxWidth;
  const power = 10 ** Math.floor(Math.log10(metres));
  const length = [5, 2, 1].map((step) => step * power).find((candidate) => candidate <= metres) || power;
  const label = length >= 1000 ? `${length / 1000} km` : length >= 1 ? `${length} m` : `${Math.round(length * 100)} cm`;
  return [length / (gsd / view.zoom), label];
}
