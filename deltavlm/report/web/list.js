
// List of chips: filtered, sorted, and virtual, with elements for the visible rows only.
const ROW = 64, rows = $("rows"), space = $("space");
const COLUMNS = [
  ["place", "Chip", (chip) => chip.number],
  ["caption", "Caption", (chip) => chip.caption.toLowerCase()],
  ["buildings", "Bldg", (chip) => chip.buildings ?? -1],
  ["roads", "Road", (chip) => chip.roads ?? -1],
  ["score", "Score", (chip) => (chip.score ?? -1) + (chip.changed ? (chip.conflicts.length ? 2 : 4) : 0)],  // first those that agree
];
const sorting = { by: "score", down: true };
const pool = [];

const filter = () => ({
  words: $("search").value.toLowerCase().split(/\s+/).filter(Boolean),
  state: $("state").value,
  kind: $("class").value,
  low: Number($("low").value) / 100,
  high: Number($("high").value) / 100,
});

function matchesFilter(chip, criteria, anyScore) {
  if (state.pair !== null && chip.pair !== state.pair) return false;
  if (criteria.state === "changed" && !chip.changed) return false;
  if (criteria.state === "unchanged" && chip.changed !== false) return false;
  if (criteria.state === "conflict" && !chip.conflicts.length) return false;
  if (criteria.state === "unreviewed" && isReviewed(chip)) return false;
  if (criteria.state === "open" && ANSWERED.has(chip.status)) return false;
  if (criteria.kind && !chip.classes.has(criteria.kind)) return false;
  if (!anyScore && (criteria.low > 0 || criteria.high < 1)) {
    if (chip.score === null || chip.score < criteria.low || chip.score > criteria.high) return false;
  }
  return criteria.words.every((word) => chip.words.includes(word));
}

function refilter() {
  const criteria = filter();
  const value = COLUMNS.find(([name]) => name === sorting.by)[2];
  const sign = sorting.down ? -1 : 1;
  state.rows = CHIPS.filter((chip) => matchesFilter(chip, criteria)).map((chip) => [value(chip), chip])
    .sort(([keyA, a], [keyB, b]) => (keyA < keyB ? -sign : keyA > keyB ? sign : a.number - b.number)).map(([, chip]) => chip);
  state.listed = new Set(state.rows);
  const all = CHIPS.filter((chip) => state.pair === null || chip.pair === state.pair).length;
  const isUnfiltered = state.rows.length === all;
  $("count").replaceChildren(isUnfiltered ? pluralize(all, "chip") : `${integers.format(state.rows.length)} of ${pluralize(all, "chip")}`);
  if (!isUnfiltered) $("count").append(make("button", { type: "button", text: "Show all", onclick: clearFilters }));
  $("dual").style.setProperty("--low", `${criteria.low * 100}%`);
  $("dual").style.setProperty("--high", `${100 - criteria.high * 100}%`);
  $("range-told").textContent = `${criteria.low.toFixed(2)}–${criteria.high.toFixed(2)}`;
  $("list").setAttribute("aria-rowcount", String(state.rows.length + 1));
  space.style.height = `${state.rows.length * ROW}px`;
  histogram(criteria);
  requestFill();
  draw();
}

function clearFilters() {
  $("filters").reset();
  refilter();
}

let fillRequested = false;
function requestFill() {
  if (fillRequested) return;
  fillRequested = true;
  requestAnimationFrame(() => { fillRequested = false; fill(); });
}

function fill() {
  const first = Math.max(0, Math.floor(rows.scrollTop / ROW) - 2);
  const number = Math.min(state.rows.length - first, Math.ceil(rows.clientHeight / ROW) + 5);
  while (pool.length < number) { const row = newRow(); pool.push(row); space.append(row); }
  pool.forEach((row, index) => {
    const chip = index < number ? state.rows[first + index] : null;
    row.hidden = !chip;
    if (chip) fillRow(row, chip, first + index);
  });
}

function newRow() {
  const cell = (name) => make("div", { role: "gridcell", class: name });
  const row = make("div", { class: "row", role: "row" },
    make("div", { role: "gridcell" }, make("canvas", { width: 196, height: 94 })),
    make("div", { role: "gridcell" }, make("div", { class: "said" }), make("div", { class: "where" }, make("b", {}), make("span", {}))),
    cell("num"), cell("num"), cell("num score"));
  row.addEventListener("click", () => choose(row.chip, { open: true, near: true }));
  row.addEventListener("pointerenter", () => { if (row.chip.pair === state.shown) { hovered = row.chip; draw(); } });
  row.addEventListener("pointerleave", () => { hovered = null; draw(); });
  return row;
}

function fillRow(row, chip, index) {
  row.style.transform = `translateY(${index * ROW}px)`;
  row.setAttribute("aria-rowindex", String(index + 2));
  row.setAttribute("aria-selected", String(chip === state.chosen));
  row.id = `row-${chip.number}`;
  if (row.chip === chip && row.painted) return;
  row.chip = chip;
  const [pictures, words, buildings, roads, score] = row.children;
  const isAnswered = ANSWERED.has(chip.status);
  words.firstElementChild.textContent = isAnswered ? chip.caption || "–" : `Not analyzed: ${chip.status}`;
  words.firstElementChild.classList.toggle("none", !chip.changed);
  words.firstElementChild.classList.toggle("conflict", chip.conflicts.length > 0);
  words.firstElementChild.title = chip.conflicts.map(([, meaning]) => meaning).join("; ");
  const [id, place] = words.lastElementChild.children;  // a position that does not fit is left out
  id.textContent = chip.id;
  place.textContent = ` · ${state.pair === null ? PAIRS[chip.pair].name : formatPosition(chip)}`;
  place.classList.toggle("pair", state.pair === null);
  words.lastElementChild.title = `${id.textContent}${place.textContent}`;
  buildings.textContent = chip.buildings ?? "–";
  roads.textContent = chip.roads ?? "–";
  buildings.classList.toggle("none", !chip.buildings);
  roads.classList.toggle("none", !chip.roads);
  score.textContent = formatScore(chip.score);
  score.style.setProperty("--score", chip.score === null ? "transparent" : colour(chip.score));
  const context = pictures.firstElementChild.getContext("2d");
  context.clearRect(0, 0, 196, 94);
  const repaint = () => { row.painted = false; requestFill(); };
  const both = [0, 1].map((date) => paintChip(context, chip, date, date * 100, 0, 96, 94, repaint));
  row.painted = both.every(Boolean) || !PAIRS[chip.pair].pictures;
}

function reveal(chip) {
  const index = state.rows.indexOf(chip);
  if (index < 0) return;
  const top = index * ROW;
  if (top < rows.scrollTop) rows.scrollTop = top;
  else if (top + ROW > rows.scrollTop + rows.clientHeight) rows.scrollTop = top + ROW - rows.clientHeight;
  $("list").setAttribute("aria-activedescendant", `row-${chip.number}`);
}

// Select the chip `steps` rows below the selected one.
function step(steps) {
  if (!state.rows.length) return;
  const index = state.rows.indexOf(state.chosen), last = state.rows.length - 1;
  const next = index < 0 && steps <= last ? 0 : Math.min(last, Math.max(0, index + steps));
  choose(state.rows[next], { open: state.open });
}

function histogram(criteria) {
  const BINS = 20, width = 460, height = 200, base = 172, left = 4;
  const all = new Array(BINS).fill(0), listed = new Array(BINS).fill(0);
  const bin = (chip) => Math.min(BINS - 1, Math.floor(chip.score * BINS));
  let scored = 0;
  for (const chip of CHIPS) {
    if (chip.score === null || (state.pair !== null && chip.pair !== state.pair)) continue;
    scored += 1;
    all[bin(chip)] += 1;
    if (matchesFilter(chip, criteria)) listed[bin(chip)] += 1;
  }
  const box = $("histogram");
  if (!scored) {
    box.replaceChildren(make("p", { class: "muted", text: "No chip has a score: the yes/no question was not asked." }));
    return;
  }
  const maxRoot = Math.sqrt(Math.max(...all)), step = (width - 2 * left) / BINS;
  const tall = (count) => (count ? Math.max(2, (Math.sqrt(count) / maxRoot) * (base - 22)) : 0);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Histogram of ${scored} scores: ${all.filter(Boolean).length ? all.map((count, index) => (count ? `${(index / BINS).toFixed(2)} to ${((index + 1) / BINS).toFixed(2)}: ${count}` : "")).filter(Boolean).join("; ") : "none"}` });
  all.forEach((count, index) => {
    const x = left + index * step;
    const bar = (number, settings) => svg("rect", { x: x + 1.5, width: step - 3, y: base - tall(number), height: tall(number), rx: 2, ...settings });
    drawing.append(bar(count, { class: "all" }), bar(listed[index], { fill: colour((index + 0.5) / BINS) }));
    if (count) drawing.append(svg("text", { x: x + step / 2, y: base - tall(count) - 5, "text-anchor": "middle" }, count > 999 ? `${(count / 1000).toFixed(1)}k` : String(count)));
    const hit = svg("rect", { x, width: step, y: 0, height: base, class: "hit" }, svg("title", {}, `${(index / BINS).toFixed(2)} to ${((index + 1) / BINS).toFixed(2)}: ${pluralize(count, "chip")}, ${listed[index]} listed`));
    hit.addEventListener("click", () => {
      $("low").value = (index / BINS) * 100;
      $("high").value = ((index + 1) / BINS) * 100;
      refilter();
    });
    drawing.append(hit);
  });
  drawing.append(svg("line", { x1: left, x2: width - left, y1: base + 0.5, y2: base + 0.5 }));
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    drawing.append(svg("text", { x: left + tick * (width - 2 * left), y: base + 18, "text-anchor": tick === 0 ? "start" : tick === 1 ? "end" : "middle" }, String(tick)));
  }
  box.replaceChildren(drawing, make("p", { class: "muted", text: "Bar heights are proportional to the square root of the count, so that small counts remain visible." }));
}

function listenToList() {
  for (const [name, label] of COLUMNS) {
    const button = make("button", { type: "button", text: label, "data-by": name });
    button.addEventListener("click", () => {
      sorting.down = sorting.by === name ? !sorting.down : !["place", "caption"].includes(name);
      sorting.by = name;
      updateHeads();
      rows.scrollTop = 0;
      refilter();
    });
    $("head").append(make("div", { role: "columnheader" }, button));
  }
  const updateHeads = () => [...$("head").children].forEach((head) => {
    const button = head.firstElementChild, [, label] = COLUMNS.find(([name]) => name === button.dataset.by);
    const chosen = button.dataset.by === sorting.by;
    head.setAttribute("aria-sort", chosen ? (sorting.down ? "descending" : "ascending") : "none");
    button.textContent = chosen ? `${label} ${sorting.down ? "↓" : "↑"}` : label;
  });
  updateHeads();
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("input", (event) => {
    if (event.target.id === "low" && Number($("low").value) > Number($("high").value)) $("high").value = $("low").value;
    if (event.target.id === "high" && Number($("high").value) < Number($("low").value)) $("low").value = $("high").value;
    rows.scrollTop = 0;
    refilter();
  });
  rows.addEventListener("scroll", requestFill, { passive: true });
  $("list").addEventListener("keydown", (event) => {
    if (event.target.closest("button")) return;
    const page = Math.max(1, Math.floor(rows.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -CHIPS.length, End: CHIPS.length }[event.key];
    if (steps !== undefined) step(steps);
    else if (event.key === "Enter" && state.chosen) choose(state.chosen, { open: true, near: true });
    else return;
    event.preventDefault();
  });
  new ResizeObserver(requestFill).observe(rows);
}
