// Views, theme, keys; and the beginning.

const views = { model: showModel, compare: showCompare, samples: showSamples };

function show() {
  const view = state.get("view", "board");
  for (const link of document.querySelectorAll("nav a")) {
    const own = link.dataset.view === view;
    if (own) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    document.getElementById(`view-${link.dataset.view}`).hidden = !own;
  }
  if (!(view in views)) return;
  const place = document.getElementById(`view-${view}`), { name } = document.activeElement;
  views[view](place);
  // What had the focus was made anew.
  if (name && document.activeElement === document.body)
    place.querySelector(`[name="${CSS.escape(name)}"]`)?.focus();
}

function startTheme(button) {
  const names = ["system", "light", "dark"];
  // Pages from the disk may be refused a place to keep it.
  const kept = { get: () => { try { return localStorage.robenchTheme; } catch { return null; } },
    set: name => { try { localStorage.robenchTheme = name; } catch { /* until the page is closed */ } } };
  const use = name => {
    document.documentElement.dataset.theme = name;
    button.textContent = `Theme: ${name}`;
  };
  use(names.includes(kept.get()) ? kept.get() : "system");
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
    kept.set(next);
    use(next);
  });
}

function startKeys() {
  const letters = { l: "board", m: "model", c: "compare", s: "samples", r: "reports" };
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest?.("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "/") {
      state.set({ view: "" });
      document.querySelector("#filters [name=q]")?.focus();
      event.preventDefault();
    } else if (letters[event.key]) state.set({ view: letters[event.key] });
    else if (state.get("view") === "samples" && ["ArrowLeft", "ArrowRight"].includes(event.key))
      document.querySelector(`[name=${event.key === "ArrowLeft" ? "earlier" : "later"}]`)?.click();
  });
}

startTheme(document.getElementById("theme"));
startKeys();
startReports();
const filters = document.getElementById("filters");
state.listen(show);
if (filters) state.listen(startBoard(filters));
state.read();
