
// Detail of one chip: images, answers, position.
const detail = $("detail");

function cellGrid(chip, kind) {
  const box = make("span", { class: "nine", "aria-hidden": "true" });
  const named = new Set([...cellsOf(chip, kind)].map(([row, column]) => row * 3 + column));
  for (let cell = 0; cell < 9; cell++) box.append(make("i", named.has(cell) ? { class: "on" } : {}));
  return [box, [...cellsOf(chip, kind)].map(([, , label]) => label).join(", ")];
}

function chipFigure(chip, date) {
  const drawing = make("canvas", { width: 512, height: 512, role: "img", "aria-label": `${date ? "After" : "Before"}: chip ${chip.id}` });
  const context = drawing.getContext("2d");
  const longest = Math.max(chip.w, chip.h);
  const width = (512 * chip.w) / longest, height = (512 * chip.h) / longest;
  const repaint = () => {
    context.clearRect(0, 0, 512, 512);
    const isPainted = paintChip(context, chip, date, 0, 0, width, height, repaint);
    if (date && $("show-cells").checked) cells(context, chip, 0, 0, (512 * DATA.chipPx) / longest, chip.w / DATA.chipPx, chip.h / DATA.chipPx);
    return isPainted;
  };
  repaint();
  const pair = PAIRS[chip.pair], when = pair.dates[date];
  const name = date ? pair.after : pair.before;
  return make("figure", {}, drawing, make("figcaption", { text: `${date ? "After" : "Before"}${when ? `, ${when}` : ""}${name ? ` · ${name}` : ""}` }));
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = make("textarea", { value: text });  // a page opened from a file may not use the clipboard API
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function facts(chip) {
  const list = make("dl", { class: "facts" });
  const add = (label, ...parts) => list.append(make("dt", { text: label }), make("dd", parts.length > 1 && label.endsWith("cells") ? { class: "celled" } : {}, ...parts));
  if (!ANSWERED.has(chip.status)) add("Status", chip.status);
  if (chip.score !== null) {
    const meter = make("span", { class: "meter", "aria-hidden": "true" }, make("i"));
    meter.style.setProperty("--share", `${chip.score * 100}%`);
    meter.style.setProperty("--score", colour(chip.score));
    add("Changed", meter, `${chip.changed === null ? "neither yes nor no" : chip.changed ? "yes" : "no"}, score ${formatScore(chip.score)}`);
  }
  chip.conflicts.forEach(([, meaning], index) => add(index ? "" : "Conflicts", make("span", { class: "conflict", text: meaning })));
  if (chip.buildings !== null) add("New buildings", String(chip.buildings));
  if (chip.roads !== null) add("New roads", String(chip.roads));
  if (chip.building_cells) add("Building cells", ...cellGrid(chip, "building"));
  if (chip.road_cells) add("Road cells", ...cellGrid(chip, "road"));
  if (chip.evidence) add("Evidence", chip.evidence);
  const largest = [...chip.changes].sort((a, b) => (b.area || 0) - (a.area || 0));
  for (const change of largest.slice(0, 3)) {
    add("Polygon", `${change.kind.replaceAll("_", " ")}${change.area === null ? "" : `, ${integers.format(Math.round(change.area))} m²`}${change.score === null ? "" : `, score ${formatScore(change.score)}`}`);
  }
  if (largest.length > 3) add("", `and ${largest.length - 3} smaller`);
  const button = make("button", { type: "button", text: "Copy", "aria-label": "Copy the coordinates" });
  button.addEventListener("click", () => copy(formatPosition(chip, 7), button));
  add(chip.lon === null ? "Centre, px" : "Lon, lat", formatPosition(chip), button);
  add("Pixels", `${chip.w} × ${chip.h} from column ${chip.x}, row ${chip.y}`);
  if (chip.surety !== null) add("Caption score", `${chip.surety} (mean log-probability; closer to 0 is more certain)`);
  if (chip.valid !== null && chip.valid < 0.995) add("Valid pixels", `${Math.round(chip.valid * 100)} %`);
  if (chip.clouds !== null && chip.clouds >= 0.005) add("Hidden by clouds", `${Math.round(chip.clouds * 100)} %`);
  if (chip.shift !== null && chip.shift > 1) add("Shift between the dates", `${chip.shift} px`);
  if (PAIRS.length > 1) add("Pair", PAIRS[chip.pair].name);
  return list;
}

function openDetail(chip) {
  const number = state.rows.indexOf(chip);
  const button = (label, title, action, settings = {}) => {
    const element = make("button", { type: "button", text: label, "aria-label": title, title, ...settings });
    element.addEventListener("click", action);
    return element;
  };
  const bar = make("div", { class: "detail-bar" },
    button("‹ List", "Close (Esc)", close, { id: "close" }),
    make("span", { class: "spring", text: `${chip.id}${number < 0 ? "" : ` · ${integers.format(number + 1)} of ${integers.format(state.rows.length)}`}` }),
    button("↑", "Previous chip in the list", () => step(-1), { disabled: number <= 0, id: "previous" }),
    button("↓", "Next chip in the list", () => step(1), { disabled: number < 0 || number === state.rows.length - 1, id: "next" }));
  const hasImages = PAIRS[chip.pair].pictures || DATA.details[chip.number];
  const isCoarse = PAIRS[chip.pair].pictures && !DATA.details[chip.number] && PAIRS[chip.pair].pictures.size[0] < 0.75 * PAIRS[chip.pair].pictures.extent[0];
  const answers = make("details", {}, make("summary", { text: "Raw answers" }));
  for (const [name, text] of chip.answers) {
    if (text) answers.append(make("p", { class: "answer" }, make("q", { text: DATA.questions[name] || name }), text));
  }
  detail.replaceChildren(bar,
    hasImages ? make("div", { class: "pictures" }, chipFigure(chip, 0), chipFigure(chip, 1)) : "",
    isCoarse ? make("p", { class: "muted", text: "From the overview: the page has full-resolution images of the most changed chips only." }) : "",
    make("p", { class: "caption", text: ANSWERED.has(chip.status) ? chip.caption || "No caption." : `Not analyzed: ${chip.status}.` }),
    facts(chip), reviewOf(chip), answers.children.length > 1 ? answers : "");
  detail.hidden = false;
  detail.scrollTop = 0;
}

function choose(chip, { open = false, near = false } = {}) {
  if (!chip) return;
  state.chosen = chip;
  if (chip.pair !== state.shown) showPair(chip.pair);
  reveal(chip);
  const wasOnButton = detail.contains(document.activeElement) && document.activeElement.id;
  if (open) {
    state.open = true;
    openDetail(chip);
    if (wasOnButton && $(wasOnButton)) $(wasOnButton).focus();
  }
  show(chip, near);
  requestFill();
}

function close() {
  if (!state.open) { if (state.chosen) { state.chosen = null; requestFill(); draw(); } return; }
  const inside = detail.contains(document.activeElement);
  state.open = false;
  detail.hidden = true;
  detail.replaceChildren();
  if (inside) $("list").focus({ preventScroll: true });
  requestFill();
  draw();
}
