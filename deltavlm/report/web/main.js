
// Title, totals, legend, pair selector, theme and keys of the page.
function totals() {
  const chips = CHIPS.filter((chip) => state.pair === null || chip.pair === state.pair);
  const answered = chips.filter((chip) => ANSWERED.has(chip.status));
  const changed = chips.filter((chip) => chip.changed);
  const hasValues = (name) => chips.some((chip) => chip[name] !== null);
  const box = $("totals");
  box.replaceChildren();
  const add = (label, number, small = "") => box.append(make("div", {}, make("dt", { text: label }), make("dd", { text: number }, small ? make("small", { text: ` ${small}` }) : null)));
  if (PAIRS.length > 1 && state.pair === null) add("Pairs", integers.format(PAIRS.length));
  add("Chips analyzed", integers.format(answered.length));
  if (hasValues("changed")) add(DATA.threshold === null ? "Changed" : `Changed, score from ${DATA.threshold}`, integers.format(changed.length), answered.length ? `${((100 * changed.length) / answered.length).toFixed(1)} %` : "");
  const unread = answered.filter((chip) => chip.changed === null && chip.answers.some(([name, text]) => name === "change" && text)).length;
  if (unread) add("Neither yes nor no", integers.format(unread), "not counted as changed");
  const conflicting = chips.filter((chip) => chip.conflicts.length).length;
  if (conflicting) add("Conflicting answers", integers.format(conflicting), pluralize(conflicting, "chip").split(" ")[1]);
  const figures = state.pair === null ? DATA.totals : PAIRS[state.pair].totals;
  const polygons = PAIRS.reduce((total, each, index) => total + (state.pair === null || index === state.pair ? each.changes : 0), 0);
  const basis = figures.basis === "polygons" ? `in ${pluralize(polygons, "polygon")}` : `by ${figures.basis}`;
  const percent = figures.changed_share === null ? "" : `${+(100 * figures.changed_share).toPrecision(2)} %`;
  if (figures.changed_km2 !== null) add("Changed ground", formatArea(figures.changed_km2), [percent, basis].filter(Boolean).join(", "));
  else if (percent) add("Changed ground", percent, basis);
  for (const [label, number] of [["New buildings", figures.new_buildings], ["New roads", figures.new_roads]]) {
    if (number !== null) add(label, decimals.format(number), "estimate by chips");
  }
  if (answered.length < chips.length) add("Not analyzed", integers.format(chips.length - answered.length));
  if (figures.cloud_share !== null) add("Hidden by clouds", `${+(100 * figures.cloud_share).toPrecision(2)} %`, "of the ground");
  const pair = PAIRS[state.pair ?? 0];
  if (pair && pair.gsd && state.pair !== null) add("Pixel", pair.gsd < 1 ? `${+(pair.gsd * 100).toPrecision(3)}` : `${+pair.gsd.toPrecision(3)}`, pair.gsd < 1 ? "cm" : "m");
}

function subtitle() {
  const pair = state.pair === null ? null : PAIRS[state.pair];
  const dates = pair && pair.dates.some(Boolean) ? ` · ${pair.dates.map((date) => date || "?").join(" → ")}` : "";
  const names = pair && pair.before ? `${pair.before} → ${pair.after}${dates}` : "";
  $("subtitle").textContent = [names, DATA.file].filter((part) => part && !$("title").textContent.includes(part)).join(" · ") || dates.slice(3);
}

function legend() {
  const ramp = make("canvas", { width: 132, height: 10, role: "img", "aria-label": "Colours of scores from 0, dark blue, to 1, yellow" });
  const context = ramp.getContext("2d");
  for (let x = 0; x < 132; x++) { context.fillStyle = colour(x / 131); context.fillRect(x, 0, 1, 10); }
  const entry = (colour, label) => {
    const swatch = make("i");
    swatch.style.background = colour;
    return make("span", {}, swatch, label);
  };
  const classes = Object.keys(CLASS_COLOURS).filter((name) => name !== "other" || DATA.changes.length);
  $("legend").replaceChildren(
    make("span", {}, "Score 0", ramp, "1; thick outline: changed"),
    CHIPS.some((chip) => chip.conflicts.length) ? make("span", { class: "conflict", text: "≠ answers contradict each other" }) : "",
    entry("#9a9ea6", "not analyzed"),
    ...classes.map((name) => entry(`rgb(${CLASS_COLOURS[name]})`, { road: "road; cells dashed", other: "other polygon" }[name] || name)),
  );
  if (DATA.leftOut) $("legend").append(`${pluralize(DATA.leftOut, "small polygon")} not drawn`);
}

function pairSelector() {
  if (PAIRS.length < 2) return;
  const changed = new Array(PAIRS.length).fill(0), number = new Array(PAIRS.length).fill(0);
  for (const chip of CHIPS) { number[chip.pair] += 1; changed[chip.pair] += chip.changed ? 1 : 0; }
  const select = $("pair");
  select.append(make("option", { value: "", text: `All ${integers.format(PAIRS.length)} pairs` }));
  PAIRS.forEach((pair, index) => {
    const result = pair.width ? `${changed[index]} of ${number[index]} changed` : "failed";
    select.append(make("option", { value: String(index), text: `${pair.name} (${result})` }));
  });
  $("pair-label").hidden = false;
  select.addEventListener("change", () => {
    state.pair = select.value === "" ? null : Number(select.value);
    state.chosen = null;
    close();
    if (state.pair !== null) showPair(state.pair);
    rows.scrollTop = 0;
    subtitle();
    totals();
    refilter();
  });
}

function theme() {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  $("theme").addEventListener("click", () => { root.dataset.theme = current() === "dark" ? "light" : "dark"; draw(); });
}

function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input[type=search], input[type=text], select, textarea");
    if (event.key === "Escape") {
      if (typing && event.target.value && event.target.id === "search") { event.target.value = ""; refilter(); }
      else if (typing) event.target.blur();
      else close();
    } else if (typing) return;
    else if (event.key === "/") $("search").focus();
    else if (event.key === "b") flip();
    else if (VERDICTS && state.open && (event.key === "a" || event.key === "r")) {
      setOpinion("chips", state.chosen, { verdict: event.key === "a" ? "accept" : "reject" });
      openDetail(state.chosen);
    }
    else if (event.key === "+" || event.key === "=") zoomAt(1.5);
    else if (event.key === "-") zoomAt(1 / 1.5);
    else if (event.key === "0") fit();
    else if (detail.contains(event.target) && (event.key === "ArrowDown" || event.key === "ArrowRight")) step(1);
    else if (detail.contains(event.target) && (event.key === "ArrowUp" || event.key === "ArrowLeft")) step(-1);
    else return;
    event.preventDefault();
  });
}

$("class").append(...CLASSES.map((name) => make("option", { value: name, text: name.replaceAll("_", " ") })));
$("class").hidden = !CLASSES.length;
$("show-changes-label").hidden = !DATA.changes.length;
for (const [label, text] of DATA.provenance) $("origin").append(make("dt", { text: label }), make("dd", { text }));
$("record").textContent = DATA.record;
$("foot").textContent = `deltavlm ${DATA.version}. Self-contained file; it makes no network requests.`;
theme();
pairSelector();
subtitle();
totals();
legend();
listenToMap();
listenToList();
listenToKeys();
startReview();
for (const element of document.querySelectorAll(".for-review")) element.hidden = !VERDICTS;
refilter();
if (PAIRS.length) showPair(state.pair ?? 0);
