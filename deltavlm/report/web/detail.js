
// One chip: its pictures, what was said about it, where it is.
const detail = $("detail");

function nine(chip, kind) {
  const box = make("span", { class: `nine ${kind}`, "aria-hidden": "true" });
  const on = new Set([...cellsOf(chip, kind)].map(([row, column]) => row * 3 + column));
  for (let cell = 0; cell < 9; cell++) box.append(make("i", on.has(cell) ? { class: "on" } : {}));
  return [box, [...cellsOf(chip, kind)].map((one) => one[2]).join(", ")];
}

function pictureOf(chip, date) {
  const drawing = make("canvas", { width: 512, height: 512, role: "img", "aria-label": `${date ? "After" : "Before"}: chip ${chip.id}` });
  const context = drawing.getContext("2d");
  const longest = Math.max(chip.w, chip.h);
  const width = (512 * chip.w) / longest, height = (512 * chip.h) / longest;
  const again = () => {
    context.clearRect(0, 0, 512, 512);
    const done = paintChip(context, chip, date, 0, 0, width, height, again);
    if (date && $("show-cells").checked) cells(context, chip, 0, 0, (512 * DATA.chipPx) / longest, chip.w / DATA.chipPx, chip.h / DATA.chipPx);
    return done;
  };
  again();
  const pair = PAIRS[chip.pair], when = pair.dates[date];
  const name = date ? pair.after : pair.before;
  return make("figure", {}, drawing, make("figcaption", { text: `${date ? "After" : "Before"}${when ? `, ${when}` : ""}${name ? ` · ${name}` : ""}` }));
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = make("textarea", { value: text });  // where the page may not use the clipboard by itself
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
  const found = make("dl", { class: "facts" });
  const add = (label, ...parts) => found.append(make("dt", { text: label }), make("dd", parts.length > 1 && label.endsWith("cells") ? { class: "celled" } : {}, ...parts));
  if (!SEEN.has(chip.status)) add("Status", chip.status);
  if (chip.score !== null) {
    const meter = make("span", { class: "meter", "aria-hidden": "true" }, make("i"));
    meter.style.setProperty("--share", `${chip.score * 100}%`);
    meter.style.setProperty("--score", colour(chip.score));
    add("Changed", meter, `${chip.changed === null ? "unread" : chip.changed ? "yes" : "no"}, score ${told(chip.score)}`);
  }
  if (chip.buildings !== null) add("New buildings", String(chip.buildings));
  if (chip.roads !== null) add("New roads", String(chip.roads));
  if (chip.building_cells) add("Building cells", ...nine(chip, "building"));
  if (chip.road_cells) add("Road cells", ...nine(chip, "road"));
  const largest = [...chip.changes].sort((one, two) => (two.area || 0) - (one.area || 0));
  for (const change of largest.slice(0, 3)) {
    add("Polygon", `${change.class.replaceAll("_", " ")}${change.area === null ? "" : `, ${whole.format(Math.round(change.area))} m²`}${change.score === null ? "" : `, score ${told(change.score)}`}`);
  }
  if (largest.length > 3) add("", `and ${largest.length - 3} smaller`);
  const button = make("button", { type: "button", text: "Copy", "aria-label": "Copy the place" });
  button.addEventListener("click", () => copy(place(chip), button));
  add(chip.lon === null ? "Middle, px" : "Lon, lat", place(chip), button);
  add("Pixels", `${chip.w} × ${chip.h} from column ${chip.x}, row ${chip.y}`);
  if (chip.surety !== null) add("Caption surety", `${chip.surety} (mean log-probability; nearer 0 is surer)`);
  if (chip.valid !== null && chip.valid < 0.995) add("With data", `${Math.round(chip.valid * 100)} %`);
  if (PAIRS.length > 1) add("Pair", PAIRS[chip.pair].name);
  return found;
}

function openDetail(chip) {
  const number = state.rows.indexOf(chip);
  const button = (label, title, action, settings = {}) => {
    const one = make("button", { type: "button", text: label, "aria-label": title, title, ...settings });
    one.addEventListener("click", action);
    return one;
  };
  const bar = make("div", { class: "detail-bar" },
    button("‹ List", "Close (Esc)", close, { id: "close" }),
    make("span", { class: "spring", text: `${chip.id}${number < 0 ? "" : ` · ${whole.format(number + 1)} of ${whole.format(state.rows.length)}`}` }),
    button("↑", "Chip before this one in the list", () => step(-1), { disabled: number <= 0, id: "previous" }),
    button("↓", "Next chip in the list", () => step(1), { disabled: number < 0 || number === state.rows.length - 1, id: "next" }));
  const has = PAIRS[chip.pair].pictures || DATA.details[chip.number];
  const coarse = PAIRS[chip.pair].pictures && !DATA.details[chip.number] && PAIRS[chip.pair].pictures.size[0] < 0.75 * PAIRS[chip.pair].pictures.extent[0];
  const answers = make("details", {}, make("summary", { text: "Answers, word for word" }));
  for (const [name, text] of chip.answers) {
    if (text) answers.append(make("p", { class: "answer" }, make("q", { text: DATA.questions[name] || name }), text));
  }
  detail.replaceChildren(bar,
    has ? make("div", { class: "pictures" }, pictureOf(chip, 0), pictureOf(chip, 1)) : "",
    coarse ? make("p", { class: "muted", text: "From the overview: the page has finer pictures of the most changed chips only." }) : "",
    make("p", { class: "caption", text: SEEN.has(chip.status) ? chip.caption || "No caption." : `Not answered: ${chip.status}.` }),
    facts(chip), answers.children.length > 1 ? answers : "");
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
  list();
}

function close() {
  if (!state.open) { if (state.chosen) { state.chosen = null; list(); draw(); } return; }
  const inside = detail.contains(document.activeElement);
  state.open = false;
  detail.hidden = true;
  detail.replaceChildren();
  if (inside) $("list").focus({ preventScroll: true });
  list();
  draw();
}
