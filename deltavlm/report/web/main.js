
// Title, totals, legend, and what belongs to the page as a whole.
function totals() {
  const chips = CHIPS.filter((chip) => state.pair === null || chip.pair === state.pair);
  const seen = chips.filter((chip) => SEEN.has(chip.status));
  const changed = chips.filter((chip) => chip.changed);
  const sum = (name) => chips.reduce((total, chip) => total + (chip[name] || 0), 0);
  const asked = (name) => chips.some((chip) => chip[name] !== null);
  const box = $("totals");
  box.replaceChildren();
  const add = (label, number, small = "") => box.append(make("div", {}, make("dt", { text: label }), make("dd", { text: number }, small ? make("small", { text: ` ${small}` }) : null)));
  if (PAIRS.length > 1 && state.pair === null) add("Pairs", whole.format(PAIRS.length));
  add("Chips looked at", whole.format(seen.length));
  if (asked("changed")) add("Changed", whole.format(changed.length), seen.length ? `${((100 * changed.length) / seen.length).toFixed(1)} %` : "");
  if (asked("buildings")) add("New buildings", whole.format(sum("buildings")), "estimate");
  if (asked("roads")) add("New roads", whole.format(sum("roads")), "estimate");
  const polygons = PAIRS.filter((_, index) => state.pair === null || index === state.pair).map((one) => one.changes);
  const [number, area] = [0, 1].map((part) => polygons.reduce((total, one) => total + one[part], 0));
  if (number) add("Changed ground", whole.format(Math.round(area)), `m² in ${counted(number, "polygon")}`);
  if (seen.length < chips.length) add("Not answered", whole.format(chips.length - seen.length));
  const pair = PAIRS[state.pair ?? 0];
  if (pair && pair.gsd && state.pair !== null) add("Pixel", pair.gsd < 1 ? `${+(pair.gsd * 100).toPrecision(3)}` : `${+pair.gsd.toPrecision(3)}`, pair.gsd < 1 ? "cm" : "m");
}

function subtitle() {
  const pair = state.pair === null ? null : PAIRS[state.pair];
  const dates = pair && pair.dates.some(Boolean) ? ` · ${pair.dates.map((one) => one || "?").join(" → ")}` : "";
  const names = pair && pair.before ? `${pair.before} → ${pair.after}${dates}` : "";
  $("subtitle").textContent = [names, DATA.file].filter((part) => part && !$("title").textContent.includes(part)).join(" · ") || dates.slice(3);
}

function legend() {
  const ramp = make("canvas", { width: 132, height: 10, role: "img", "aria-label": "Colours of scores from 0, dark blue, to 1, yellow" });
  const context = ramp.getContext("2d");
  for (let x = 0; x < 132; x++) { context.fillStyle = colour(x / 131); context.fillRect(x, 0, 1, 10); }
  const mark = (border, label, dashed) => {
    const sign = make("i");
    sign.style.borderColor = border;
    if (dashed) sign.style.borderStyle = "dashed";
    return make("span", {}, sign, label);
  };
  $("legend").replaceChildren(make("span", {}, "Score 0", ramp, "1, thick where changed"), mark("#9a9ea6", "not answered"), mark(`rgb(${INKS.building})`, "building"), mark(`rgb(${INKS.road})`, "road; cells dashed", true));
  if (DATA.changes.some((one) => !(one.class in INKS) || one.class === "other")) $("legend").append(mark("#2cc4cf", "other polygon"));
  if (DATA.leftOut) $("legend").append(`${counted(DATA.leftOut, "small polygon")} not drawn`);
}

function chooser() {
  if (PAIRS.length < 2) return;
  const changed = new Array(PAIRS.length).fill(0), number = new Array(PAIRS.length).fill(0);
  for (const chip of CHIPS) { number[chip.pair] += 1; changed[chip.pair] += chip.changed ? 1 : 0; }
  const select = $("pair");
  select.append(make("option", { value: "", text: `All ${whole.format(PAIRS.length)} pairs` }));
  PAIRS.forEach((pair, index) => {
    const found = pair.width ? `${changed[index]} of ${number[index]} changed` : "failed";
    select.append(make("option", { value: String(index), text: `${pair.name} (${found})` }));
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
  const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  $("theme").addEventListener("click", () => { root.dataset.theme = now() === "dark" ? "light" : "dark"; draw(); });
}

function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input[type=search], select, textarea");
    if (event.key === "Escape") {
      if (typing && event.target.value && event.target.id === "search") { event.target.value = ""; refilter(); }
      else if (typing) event.target.blur();
      else close();
    } else if (typing) return;
    else if (event.key === "/") $("search").focus();
    else if (event.key === "b") flip();
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
$("foot").textContent = `deltavlm ${DATA.version}. This file holds everything that it shows; it makes no request.`;
theme();
chooser();
subtitle();
totals();
legend();
listenToMap();
listenToList();
listenToKeys();
refilter();
if (PAIRS.length) showPair(state.pair ?? 0);
