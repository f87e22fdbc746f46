
// Review: a verdict and a note for each chip and polygon, kept in this browser and downloaded as JSON or CSV.
const VERDICTS = DATA.verdicts;  // by layer; null where the page is for looking only
const VERDICT_LABELS = { accept: "accept", reject: "reject", building: "is a building", road: "is a road", other: "is another change" };
const opinions = new Map();  // "layer|pair|id" -> { layer, pair_id, id, verdict, note }
const storageKey = `deltavlm review ${DATA.reviewKey}`;

const opinionKey = (row) => [row.layer, row.pair_id, row.id].join("|");
const rowOf = (layer, item) => ({ layer, pair_id: PAIRS[item.pair].name, id: String(item.id), verdict: "", note: "" });
const opinionOn = (layer, item) => opinions.get(opinionKey(rowOf(layer, item))) || rowOf(layer, item);
const isReviewed = (chip) => Boolean(opinionOn("chips", chip).verdict || chip.changes.some((change) => opinionOn("changes", change).verdict));

function setOpinion(layer, item, values) {
  const row = { ...opinionOn(layer, item), ...values };
  if (row.verdict || row.note) opinions.set(opinionKey(row), row); else opinions.delete(opinionKey(row));
  try { localStorage.setItem(storageKey, JSON.stringify([...opinions.values()])); } catch { /* a browser that keeps nothing */ }
  reviewStatus();
  requestFill();
  draw();
}

function addOpinions(rows) {
  const known = new Set([...CHIPS.map((chip) => opinionKey(rowOf("chips", chip))), ...DATA.changes.map((change) => opinionKey(rowOf("changes", change)))]);
  let count = 0;
  for (const { layer, pair_id, id, verdict, note } of rows) {
    const row = { layer, pair_id: pair_id || "", id: String(id), verdict: (VERDICTS[layer] || []).includes(verdict) ? verdict : "", note: String(note || "") };
    if (!known.has(opinionKey(row)) || !(row.verdict || row.note)) continue;
    opinions.set(opinionKey(row), row);
    count += 1;
  }
  return count;
}

function reviewStatus() {
  const rows = [...opinions.values()];
  const count = (layer) => rows.filter((row) => row.layer === layer && row.verdict).length;
  $("review-status").textContent = `Reviewed: ${count("changes")} of ${pluralize(DATA.changes.length, "polygon")}, ${count("chips")} of ${pluralize(CHIPS.length, "chip")}`;
}

function reviewForm(layer, item, label) {
  const box = make("div", { class: "opinion" });
  const select = make("select", { "aria-label": `Verdict on ${label}` }, make("option", { value: "", text: "no verdict" }));
  for (const name of VERDICTS[layer]) select.append(make("option", { value: name, text: VERDICT_LABELS[name] }));
  const note = make("input", { type: "text", "aria-label": `Note on ${label}`, placeholder: "Note", maxlength: "500" });
  const now = opinionOn(layer, item);
  select.value = now.verdict;
  note.value = now.note;
  select.addEventListener("input", () => setOpinion(layer, item, { verdict: select.value }));
  note.addEventListener("input", () => setOpinion(layer, item, { note: note.value }));
  box.append(make("span", { text: label }), select, note);
  return box;
}

// Form of a chip and its polygons, the largest first.
function reviewOf(chip) {
  if (!VERDICTS) return "";
  const box = make("section", { class: "review", "aria-label": "Review" }, make("h3", { text: "Review" }));
  if (ANSWERED.has(chip.status)) box.append(reviewForm("chips", chip, `chip: ${chip.changed ? "changed" : "not changed"}`));
  for (const change of [...chip.changes].sort((a, b) => (b.area || 0) - (a.area || 0))) {
    const area = change.area === null ? "" : `, ${integers.format(Math.round(change.area))} m²`;
    box.append(reviewForm("changes", change, `polygon ${change.id}: ${change.kind.replaceAll("_", " ")}${area}`));
  }
  return box;
}

function download(name, text, type) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const reviewRows = () => [...opinions.values()].sort((a, b) => (opinionKey(a) < opinionKey(b) ? -1 : 1));
const csvCell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function downloadReview(format) {
  const name = DATA.file.replace(/\.[^.]*$/, "");
  if (format === "json") {
    download(`${name}.review.json`, `${JSON.stringify({ output: DATA.file, ...(DATA.threshold === null ? {} : { threshold: DATA.threshold }), review: reviewRows() }, null, 1)}\n`, "application/json");
  } else {
    const columns = ["layer", "pair_id", "id", "verdict", "note"];
    const lines = [columns, ...reviewRows().map((row) => columns.map((column) => row[column]))];
    download(`${name}.review.csv`, lines.map((line) => `${line.map(csvCell).join(",")}\r\n`).join(""), "text/csv");
  }
}

async function loadReview(file) {
  try {
    const count = addOpinions(JSON.parse(await file.text()).review);
    setOpinion("chips", CHIPS[0], {});
    $("review-status").textContent += `; ${pluralize(count, "opinion")} loaded`;
    if (state.open) openDetail(state.chosen);
  } catch {
    $("review-status").textContent = `${file.name} is no review of this page`;
  }
}

function startReview() {
  if (!VERDICTS) return;
  $("review").hidden = false;
  $("state").append(make("option", { value: "unreviewed", text: "Not reviewed" }));
  const written = (layer, item) => ({ ...rowOf(layer, item), verdict: item.verdict || "", note: item.note || "" });
  addOpinions([...CHIPS.map((chip) => written("chips", chip)), ...DATA.changes.map((change) => written("changes", change))]);
  try { addOpinions(JSON.parse(localStorage.getItem(storageKey) || "[]")); } catch { /* nothing was kept */ }
  $("review-json").addEventListener("click", () => downloadReview("json"));
  $("review-csv").addEventListener("click", () => downloadReview("csv"));
  $("review-load").addEventListener("change", (event) => { if (event.target.files[0]) loadReview(event.target.files[0]); });
  reviewStatus();
}
