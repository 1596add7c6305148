// The leaderboard: search, filters, columns, order.

function sortTable(head, down) {
  const body = head.closest("table").tBodies[0], place = head.cellIndex;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[place].dataset.value;
  const sorted = [...body.rows].sort((one, two) => {
    const a = value(one), b = value(two);
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    return down ? -order : order;
  });
  body.append(...sorted);
}

function startBoard(form) {
  const view = document.getElementById("view-board");
  const tables = [...view.querySelectorAll("table.board")];
  const lines = tables.flatMap(found => [...found.tBodies[0].rows].map(line => ({ line, text: null })));
  const boxes = [...form.querySelectorAll("fieldset input")];
  const first = [...boxes.map(box => tables.length > 0 && usual(box))];
  const said = form.querySelector("output"), style = document.getElementById("hidden-columns");
  const fields = ["dataset", "norm", "eps", "defense"];

  function usual(box) {
    // Metrics and what tables of models seldom turn on wait in the list of columns.
    return !/^(architecture|parameters|attention_|alignment|exclusion|separation|worst_class)/.test(box.value);
  }
  function textOf(item) {
    if (item.text === null) {
      const row = rowOf.get(item.line.dataset.id), cells = [...item.line.cells];
      const data = Object.values(item.line.dataset);
      const about = row ? JSON.stringify([row.facts, row.card, row.flags, row.validation,
        row.attacks.map(({ name, about, facts }) => [name, about, facts])]) : "";
      item.text = [...cells.map(cell => cell.textContent), ...data, about].join("\n").toLowerCase();
    }
    return item.text;
  }
  function fill() {
    for (const name of [...fields, "flag"]) {
      const values = new Set(lines.flatMap(({ line }) =>
        name === "flag" ? line.dataset.flags.split("\n") : [line.dataset[name]]));
      form.elements[name].replaceChildren(element("option", { value: "" }, "any"),
        ...[...values].map(value => element("option", { value }, value)));
    }
  }
  function shows(box, place) {
    return first[place] ? !state.all("hide").includes(box.value) : state.all("show").includes(box.value);
  }
  function apply() {
    const words = state.get("q").toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const item of lines) {
      const data = item.line.dataset, flag = state.get("flag");
      const fits = fields.every(name => ["", data[name]].includes(state.get(name))) &&
        (flag === "" || data.flags.split("\n").includes(flag)) &&
        words.every(word => textOf(item).includes(word));
      if (item.line.hidden === fits) item.line.hidden = !fits;
      found += fits;
    }
    for (const part of tables) {
      const empty = [...part.tBodies[0].rows].every(line => line.hidden);
      part.closest("section").hidden = empty;
    }
    said.textContent = found === lines.length ? `${found} rows`
      : found ? `${found} of ${lines.length} rows` : "Nothing matches. Clear the search and filters.";
    const hidden = boxes.filter((box, place) => !shows(box, place));
    const rules = hidden.map(box => `table.board [data-c="${box.dataset.c}"]`);
    const rule = rules.length ? `${rules.join(",")}{display:none}` : "";
    if (style.textContent !== rule) style.textContent = rule;
    boxes.forEach((box, place) => { box.checked = shows(box, place); });
    for (const name of ["q", ...fields, "flag"])
      if (form.elements[name].value !== state.get(name)) form.elements[name].value = state.get(name);
    order();
  }
  let ordered = "";
  function order() {
    const sort = state.get("sort");
    if (sort === ordered) return;
    ordered = sort;
    if (sort === "") {
      for (const { line } of lines) line.parentElement.append(line);
      for (const head of view.querySelectorAll("[aria-sort]")) head.removeAttribute("aria-sort");
    }
    const down = !sort.startsWith("-"), name = sort.replace(/^-/, "");
    const box = boxes.find(one => one.value === name);
    for (const part of tables) {
      const head = box && part.querySelector(`th[data-c="${box.dataset.c}"]`);
      if (head) sortTable(head, down);
    }
  }
  form.addEventListener("input", event => {
    const { name, value, type } = event.target;
    if (type === "checkbox") {
      const now = boxes.filter(box => box.checked), usually = (_, place) => first[place];
      state.set({
        hide: boxes.filter(usually).filter(box => !box.checked).map(box => box.value),
        show: now.filter(box => !first[boxes.indexOf(box)]).map(box => box.value),
      });
    } else if (name) state.set({ [name]: value });
  });
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", event => {
    event.preventDefault();
    state.set(Object.fromEntries(["q", "flag", "hide", "show", "sort", ...fields].map(n => [n, ""])));
  });
  for (const head of view.querySelectorAll("table.board th[data-c]"))
    head.querySelector("button").addEventListener("click", () => {
      const box = boxes.find(one => one.dataset.c === head.dataset.c);
      const down = head.getAttribute("aria-sort") !== "descending";
      state.set({ sort: (down ? "" : "-") + box.value });
    });
  fill();
  form.hidden = false;
  return apply;
}

function startReports() {
  for (const button of document.querySelectorAll("#view-reports th button"))
    button.addEventListener("click", () => {
      const head = button.parentElement;
      sortTable(head, head.getAttribute("aria-sort") !== "descending");
    });
}
