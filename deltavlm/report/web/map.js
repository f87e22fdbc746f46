
// Map: both dates with a swipe between them, and chips, cells and change polygons on top.
const map = $("map"), canvas = $("canvas"), swipe = $("swipe"), tip = $("tip");
const SMALL = 11;  // px; chips smaller than this are filled, and unchanged ones omitted
let hovered = null, paintRequested = false;

function draw() {
  if (paintRequested) return;
  paintRequested = true;
  requestAnimationFrame(() => { paintRequested = false; paint(); });
}

function paint() {
  const context = canvas.getContext("2d");
  const pixelRatio = window.devicePixelRatio || 1;
  context.setTransform(pixelRatio, 0, 0, pixelRatio, 0, 0);
  context.clearRect(0, 0, view.width, view.height);
  const pair = PAIRS[state.shown];
  if (!pair) return;
  const split = Math.round(view.split * view.width);
  if (pair.pictures) {
    drawDate(context, pair, 0, 0, split);
    drawDate(context, pair, 1, split, view.width);
  } else {
    context.fillStyle = "rgba(128,132,140,.18)";
    context.fillRect(view.x, view.y, pair.width * view.zoom, pair.height * view.zoom);
  }
  if ($("show-chips").checked) drawChips(context);
  if ($("show-cells").checked) drawCells(context);
  if (DATA.changes.length && $("show-changes").checked) drawChanges(context);
  for (const chip of [hovered, state.chosen]) {
    if (!chip || chip.pair !== state.shown) continue;
    context.setLineDash([]);
    strokeFrame(context, chip, "rgba(0,0,0,.75)", chip === state.chosen ? 6 : 4, 0);
    strokeFrame(context, chip, "#fff", chip === state.chosen ? 3 : 1.5, 1);
  }
  drawOverlay(pair, split);
}

// Draw one date between two screen columns. Zoomed in, chips with detail images are drawn from these.
function drawDate(context, pair, date, left, right) {
  const image = picture(date ? pair.pictures.after : pair.pictures.before, draw);
  if (!image || right <= left) return;
  const [width, height] = pair.pictures.extent;
  const isCoarse = image.naturalWidth < 0.75 * width, magnification = (width * view.zoom) / image.naturalWidth;
  context.save();
  context.beginPath();
  context.rect(left, 0, right - left, view.height);
  context.clip();
  context.imageSmoothingEnabled = isCoarse || magnification < 3;
  context.imageSmoothingQuality = "high";
  context.drawImage(image, view.x, view.y, width * view.zoom, height * view.zoom);
  for (const chip of isCoarse && magnification > 1.5 ? DETAILED : []) {
    if (chip.pair !== state.shown || !isVisible(chip)) continue;
    const image = picture(DATA.details[chip.number][date], draw);
    if (image) context.drawImage(image, chip.x * view.zoom + view.x, chip.y * view.zoom + view.y, chip.w * view.zoom, chip.h * view.zoom);
  }
  context.restore();
}

function strokeFrame(context, chip, style, line, inset) {
  const offset = line / 2 + inset;
  context.strokeStyle = style;
  context.lineWidth = line;
  context.strokeRect(
    chip.x * view.zoom + view.x + offset, chip.y * view.zoom + view.y + offset,
    Math.max(1, chip.w * view.zoom - 2 * offset), Math.max(1, chip.h * view.zoom - 2 * offset),
  );
}

const isVisible = (chip) => {
  const left = chip.x * view.zoom + view.x, top = chip.y * view.zoom + view.y;
  return left < view.width && top < view.height && left + chip.w * view.zoom > 0 && top + chip.h * view.zoom > 0;
};

function drawChips(context) {
  for (const chip of state.listed) {
    if (chip.pair !== state.shown || !isVisible(chip)) continue;
    if (!ANSWERED.has(chip.status)) {
      context.fillStyle = "rgba(120,124,132,.45)";
      context.fillRect(chip.x * view.zoom + view.x, chip.y * view.zoom + view.y, chip.w * view.zoom, chip.h * view.zoom);
    } else if (chip.w * view.zoom < SMALL) {
      if (!chip.changed) continue;
      context.fillStyle = colour(chip.score, 0.8);
      context.fillRect(chip.x * view.zoom + view.x, chip.y * view.zoom + view.y, Math.max(1.5, chip.w * view.zoom - 0.5), Math.max(1.5, chip.h * view.zoom - 0.5));
    } else if (chip.changed) {
      strokeFrame(context, chip, "rgba(0,0,0,.45)", 3.5, 0);
      strokeFrame(context, chip, colour(chip.score), 2, 0.75);
    } else {
      strokeFrame(context, chip, colour(chip.score, 0.55), 1, 0);
    }
  }
}

function drawCells(context) {
  for (const chip of state.listed) {
    if (chip.pair !== state.shown || !(chip.road_cells || chip.building_cells) || !isVisible(chip)) continue;
    cells(context, chip, chip.x * view.zoom + view.x, chip.y * view.zoom + view.y, DATA.chipPx * view.zoom, chip.w / DATA.chipPx, chip.h / DATA.chipPx);
  }
}

// Cells are thirds of the square that the model saw; `shareX` and `shareY` of it are image, the rest is padding.
function cells(context, chip, x, y, size, shareX = 1, shareY = 1) {
  context.save();
  context.beginPath();
  context.rect(x, y, size * shareX, size * shareY);
  context.clip();
  const third = size / 3;
  for (const [kind, ink] of [["building", CLASS_COLOURS.building], ["road", CLASS_COLOURS.road]]) {
    for (const [row, column] of cellsOf(chip, kind)) {
      const inset = kind === "road" ? 4 : 1.5;
      context.fillStyle = `rgba(${ink},.22)`;
      context.strokeStyle = `rgba(${ink},1)`;
      context.lineWidth = 1.5;
      context.setLineDash(kind === "road" ? [5, 3] : []);
      context.fillRect(x + column * third, y + row * third, third, third);
      if (third > 9) context.strokeRect(x + column * third + inset, y + row * third + inset, third - 2 * inset, third - 2 * inset);
    }
  }
  context.restore();
}

function drawChanges(context) {
  context.setLineDash([]);
  context.lineJoin = "round";
  for (const change of DATA.changes) {
    if (change.pair !== state.shown || !isVisible(change)) continue;
    const ink = CLASS_COLOURS[change.class] || CLASS_COLOURS.other;
    if (Math.max(change.w, change.h) * view.zoom < 3) {
      context.fillStyle = `rgb(${ink})`;
      context.fillRect(change.x * view.zoom + view.x, change.y * view.zoom + view.y, 3, 3);
      continue;
    }
    context.beginPath();
    for (const ring of change.rings) {
      ring.forEach(([x, y], index) => context[index ? "lineTo" : "moveTo"](x * view.zoom + view.x, y * view.zoom + view.y));
      context.closePath();
    }
    context.fillStyle = `rgba(${ink},.3)`;
    context.fill("evenodd");
    context.strokeStyle = "rgba(0,0,0,.8)";
    context.lineWidth = 4;
    context.stroke();
    context.strokeStyle = `rgb(${ink})`;
    context.lineWidth = 2;
    context.stroke();
  }
}

// Overlay that does not move with the map: swipe handle, dates, scale bar.
function drawOverlay(pair, split) {
  swipe.style.left = `${split}px`;
  swipe.setAttribute("aria-valuenow", String(Math.round(view.split * 100)));
  swipe.setAttribute("aria-valuetext", `${Math.round(view.split * 100)} % of the map shows before`);
  $("date-before").style.opacity = view.split > 0.06 ? 1 : 0;
  $("date-after").style.opacity = view.split < 0.94 ? 1 : 0;
  $("scale").hidden = !pair.gsd;
  if (pair.gsd) {
    const [width, label] = scaleBar(pair.gsd, Math.min(160, view.width / 3));
    $("scale").firstElementChild.style.width = `${width}px`;
    if ($("scale").dataset.label !== label) {
      $("scale").dataset.label = label;
      $("scale").replaceChildren(label, make("span"));
      $("scale").firstElementChild.style.width = `${width}px`;
      $("scale").setAttribute("aria-label", `Scale bar: ${label}`);
    }
  }
}

function showPair(number) {
  state.shown = number;
  const pair = PAIRS[number];
  hovered = null;
  for (const date of ["before", "after"]) {
    const when = pair.dates[date === "before" ? 0 : 1];
    $(`date-${date}`).textContent = `${date === "before" ? "Before" : "After"}${when ? `, ${when}` : ""}`;
  }
  const reason = pair.missing || (pair.width ? "" : pair.reason);
  $("missing").hidden = !reason;
  $("missing").textContent = reason ? `No images: ${reason}` : "";
  swipe.hidden = !pair.pictures;
  $("flip").disabled = !pair.pictures;
  $("compass").hidden = pair.north === null;
  if (pair.north !== null) {
    $("compass").style.transform = `rotate(${pair.north.toFixed(1)}deg)`;
    $("compass").setAttribute("aria-label", `North is ${Math.round(pair.north)} degrees clockwise from up`);
  }
  fit();
}

function setSplit(share) {
  view.split = Math.min(1, Math.max(0, share));
  draw();
}

const flip = () => { if (PAIRS[state.shown].pictures) setSplit(view.split > 0.5 ? 0 : 1); };

function hover(chip, x = 0, y = 0) {
  if (chip !== hovered) {
    hovered = chip;
    draw();
    tip.hidden = !chip;
    if (chip) {
      const text = ANSWERED.has(chip.status) ? chip.caption || "no caption" : chip.status;
      tip.replaceChildren(make("b", { text: formatScore(chip.score) }), `  ${text}`);
    }
  }
  if (chip) {
    tip.style.left = `${Math.max(4, Math.min(x + 14, view.width - tip.offsetWidth - 6))}px`;
    tip.style.top = `${y + 18 + tip.offsetHeight > view.height ? y - tip.offsetHeight - 10 : y + 18}px`;
  }
}

function listenToMap() {
  const pointers = new Map();
  let moved = 0, pinchDistance = 0;
  const at = (event) => {
    const box = map.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const pinch = () => {
    const [first, second] = [...pointers.values()];
    return [Math.hypot(first[0] - second[0], first[1] - second[1]), (first[0] + second[0]) / 2, (first[1] + second[1]) / 2];
  };
  map.addEventListener("pointerdown", (event) => {
    if (event.target.closest(".swipe") || event.button) return;
    map.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    if (pointers.size === 1) moved = 0;
    if (pointers.size === 2) pinchDistance = pinch()[0];
  });
  map.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    const last = pointers.get(event.pointerId);
    if (!last) {
      if (event.pointerType === "mouse") hover(event.target === swipe ? null : chipAt(x, y), x, y);
      return;
    }
    pointers.set(event.pointerId, [x, y]);
    if (pointers.size === 2) {
      const [distance, centreX, centreY] = pinch();
      moved = 99;
      if (pinchDistance) zoomAt(distance / pinchDistance, centreX, centreY);
      pinchDistance = distance;
    } else {
      moved += Math.abs(x - last[0]) + Math.abs(y - last[1]);
      if (moved > 5) { map.classList.add("dragging"); hover(null); pan(x - last[0], y - last[1]); }
    }
  });
  const endPointer = (event) => {
    if (!pointers.delete(event.pointerId)) return;
    map.classList.remove("dragging");
    if (event.type === "pointerup" && moved <= 5 && !pointers.size) {
      const chip = chipAt(...at(event));
      if (chip) choose(chip, { open: true }); else close();
    }
  };
  map.addEventListener("pointerup", endPointer);
  map.addEventListener("pointercancel", endPointer);
  map.addEventListener("pointerleave", () => hover(null));
  map.addEventListener("dblclick", (event) => zoomAt(2, ...at(event)));
  map.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomAt(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...at(event));
  }, { passive: false });
  swipe.addEventListener("pointerdown", (event) => { swipe.setPointerCapture(event.pointerId); hover(null); });
  swipe.addEventListener("pointermove", (event) => {
    if (swipe.hasPointerCapture(event.pointerId)) setSplit(at(event)[0] / view.width);
  });
  swipe.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.05, ArrowDown: -0.05, ArrowRight: 0.05, ArrowUp: 0.05, Home: -1, End: 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    setSplit(view.split + step);
  });
  map.addEventListener("keydown", (event) => {
    const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (direction && event.shiftKey) pan(-60 * direction[0], -60 * direction[1]);
    else if (direction) { const next = neighbour(...direction); if (next) choose(next, { open: state.open }); }
    else if (event.key === "Enter" && state.chosen) choose(state.chosen, { open: true, near: true });
    else return;
    event.preventDefault();
  });
  for (const name of ["chips", "cells", "changes"]) $(`show-${name}`).addEventListener("change", draw);
  $("zoom-in").addEventListener("click", () => zoomAt(1.5));
  $("zoom-out").addEventListener("click", () => zoomAt(1 / 1.5));
  $("fit").addEventListener("click", fit);
  $("flip").addEventListener("click", flip);
  new ResizeObserver(() => {
    view.width = map.clientWidth;
    view.height = map.clientHeight;
    const pixelRatio = window.devicePixelRatio || 1;
    canvas.width = Math.round(view.width * pixelRatio);
    canvas.height = Math.round(view.height * pixelRatio);
    if (view.moved) { clampOffset(); draw(); } else fit();
  }).observe(map);
}
