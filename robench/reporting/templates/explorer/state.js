// What the page shows stands in its address, behind "#", so that a link shows it to others too.

const state = (() => {
  const listeners = [];
  let values = new URLSearchParams(), shown = null;
  const tell = () => {
    if (shown === values.toString()) return;
    shown = values.toString();
    for (const listener of listeners) listener();
  };
  const read = () => {
    values = new URLSearchParams(location.hash.slice(1));
    tell();
  };
  const change = changes => {
    for (const [name, value] of Object.entries(changes)) {
      values.delete(name);
      for (const item of [value].flat()) if (item !== "" && item != null) values.append(name, item);
    }
  };
  addEventListener("hashchange", read);
  addEventListener("popstate", read);
  addEventListener("click", event => {
    // A link of the page changes what it names, and leaves filters and choices as they are.
    const link = event.target.closest?.('a[href^="#"]');
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    change(Object.fromEntries(new URLSearchParams(link.getAttribute("href").slice(1))));
    history.pushState(null, "", `#${values}`);
    tell();
    scrollTo(0, 0);
  });
  return {
    get: (name, otherwise = "") => values.get(name) ?? otherwise,
    all: name => values.getAll(name),
    // Each name with its value, or a list of them; what is empty leaves the address. Going back
    // leads to the last view, not through every letter that was typed.
    set(changes) {
      change(changes);
      history.replaceState(null, "", `#${values}`);
      tell();
    },
    // The address of a view with the given values.
    link: changes => `#${new URLSearchParams(changes)}`,
    listen: listener => listeners.push(listener),
    read,
  };
})();
