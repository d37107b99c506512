// The keyboard; buttons do what keys do.

const layerNumbers = [ALL, ...data.layers.keys()];
const KEYS = [
  {
    keys: ["ArrowLeft", "ArrowRight"],
    shown: "← →",
    does: "previous, next token",
    act: (key) => step("token", live, key === "ArrowLeft" ? -1 : 1),
  },
  {
    keys: ["Home", "End"],
    shown: "Home End",
    does: "first, last token",
    act: (key) => set({ token: live[key === "Home" ? 0 : live.length - 1] }),
  },
  {
    keys: ["ArrowUp", "ArrowDown"],
    shown: "↑ ↓",
    does: "next, previous layer",
    act: (key) => step("layer", layerNumbers, key === "ArrowUp" ? 1 : -1),
  },
  { keys: ["a"], shown: "a", does: "all layers", act: () => set({ layer: ALL }) },
  {
    keys: ["[", "]"],
    shown: "[ ]",
    does: "previous, next head",
    act: (key) => step("head", heads, key === "]" ? 1 : -1),
  },
  {
    keys: ["m", "x"],
    shown: "m x",
    does: "mean, maximum over heads",
    act: (key) => set({ head: key === "m" ? "mean" : "max" }),
  },
  {
    keys: ["1", "2", "3"],
    shown: "1 2 3",
    does: "plain, edited, difference",
    act: (key) => SHOWS[key - 1] !== undefined && set({ show: SHOWS[key - 1] }),
  },
  {
    keys: ["d"],
    shown: "d",
    does: "difference and back",
    act: () => comparing && set({ show: state.show === "difference" ? 1 : "difference" }),
  },
  {
    keys: ["-", "+", "="],
    shown: "− +",
    does: "opacity of the map",
    act: (key) => set({ opacity: Math.min(100, Math.max(0, state.opacity + (key === "-" ? -10 : 10))) }),
  },
  {
    keys: ["s"],
    shown: "s",
    does: "linear or square-root scale",
    act: () => set({ scale: state.scale === "root" ? "linear" : "root" }),
  },
  { keys: ["i"], shown: "i", does: "smooth maps", act: () => set({ smooth: !state.smooth }) },
  { keys: ["c"], shown: "c", does: "copy a link to this view", act: copyLink },
  { keys: ["t"], shown: "t", does: "light or dark", act: switchTheme },
  { keys: ["?"], shown: "?", does: "this help", act: () => byId("keys").showModal() },
];

function buildKeys() {
  byId("key-list").append(
    ...KEYS.map(({ shown, does }) => {
      const caps = shown.split(" ").flatMap((cap) => [element("kbd", {}, cap), " "]);
      return element("tr", {}, element("td", {}, ...caps), element("td", {}, does));
    }),
  );
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
    if (event.target.matches("select, input[type=range]")) return;
    const found = KEYS.find(({ keys }) => keys.includes(event.key));
    if (!found) return;
    event.preventDefault();
    found.act(event.key);
  });
}

function switchTheme() {
  const dark =
    getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.style.colorScheme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.style.colorScheme = dark ? "light" : "dark";
}

async function copyLink() {
  const button = byId("copy");
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "It is in the address bar";
  }
  setTimeout(() => (button.textContent = "Copy link"), 1800);
}
