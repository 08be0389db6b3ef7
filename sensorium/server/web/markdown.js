// A model's Markdown as elements. Only the elements below are ever made: an answer cannot bring markup of its own.

import { BOX } from "./boxes.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|(\d{1,9})[.)])\s+(.*)$/;
const INLINE = new RegExp(
  [
    /(?<tick>`+)(?<code>.+?)\k<tick>(?!`)/,
    /\*\*(?<strong>\S.*?)\*\*/,
    /~~(?<del>.+?)~~/,
    /(?<![\w*])\*(?<em>[^\s*](?:.*?[^\s*])??)\*(?![\w*])/,
    /(?<!\w)_(?<em_>[^\s_](?:.*?[^\s_])??)_(?!\w)/,
    /\[(?<label>[^\]]+)\]\((?<link>https?:[^\s)]+)\)/,
    /(?<bare>https?:\/\/[^\s<>()]*[^\s<>().,;:!?'"])/,
    new RegExp(`(?<box>${BOX.source})`),
  ].map((part) => part.source).join("|"),
  "g",
);

function make(tag, ...children) {
  const element = document.createElement(tag);
  element.append(...children);
  return element;
}

function anchor(address, label) {
  return Object.assign(make("a", label), { href: address, target: "_blank", rel: "noopener noreferrer" });
}

/** The pieces of one run of text: strings and elements. */
function inline(text) {
  const pieces = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const found = match.groups;
    pieces.push(text.slice(end, match.index));
    end = match.index + match[0].length;
    if (found.code) pieces.push(make("code", found.code.trim() || found.code));
    else if (found.strong) pieces.push(make("strong", ...inline(found.strong)));
    else if (found.del) pieces.push(make("del", ...inline(found.del)));
    else if (found.em ?? found.em_) pieces.push(make("em", ...inline(found.em ?? found.em_)));
    else if (found.link) pieces.push(anchor(found.link, found.label));
    else if (found.bare) pieces.push(anchor(found.bare, found.bare));
    else pieces.push(Object.assign(make("mark", found.name || "box"), { title: found.sides, tabIndex: 0 }));
  }
  pieces.push(text.slice(end));
  return pieces;
}

function codeBlock(lines) {
  const [, mark, language] = FENCE.exec(lines[0]);
  const closed = lines.length > 1 && lines.at(-1).trim().startsWith(mark);
  const code = make("code", lines.slice(1, closed ? -1 : undefined).join("\n"));
  const copy = Object.assign(make("button", "Copy"), { type: "button", className: "copy" });
  copy.hidden = !navigator.clipboard;
  copy.onclick = () => navigator.clipboard.writeText(code.textContent).then(() => (copy.textContent = "Copied"));
  return Object.assign(make("figure", make("figcaption", language || "text", copy), make("pre", code)), { className: "code" });
}

function list(lines) {
  const root = make("div");
  const open = []; // { indent, element }, innermost last
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (!item) {
      open.at(-1).element.lastChild.append("\n", ...inline(line.trim()));
      continue;
    }
    const indent = item[1].length;
    while (open.length && indent < open.at(-1).indent) open.pop();
    if (!open.length || indent > open.at(-1).indent + 1) {
      const element = make(item[3] === undefined ? "ul" : "ol");
      if (item[3] !== undefined) element.start = Number(item[3]);
      (open.at(-1)?.element.lastChild ?? root).append(element);
      open.push({ indent, element });
    }
    open.at(-1).element.append(make("li", ...inline(item[4])));
  }
  return root.childNodes.length === 1 ? root.firstChild : root;
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (tag, line) => make("tr", ...cells(line).map((cell) => make(tag, ...inline(cell))));
  const ruled = /^[\s|:-]+$/.test(lines[1] ?? "");
  const body = make("tbody", ...lines.slice(ruled ? 2 : 0).map((line) => row("td", line)));
  const parts = ruled ? [make("thead", row("th", lines[0])), body] : [body];
  return Object.assign(make("div", make("table", ...parts)), { className: "wide" });
}

function paragraph(lines) {
  return make("p", ...inline(lines.join("\n")));
}

const MAKE = {
  fence: codeBlock,
  heading: ([line]) => {
    const [, marks, text] = HEADING.exec(line);
    return make(`h${Math.min(6, marks.length + 2)}`, ...inline(text)); // below the page's own headings
  },
  rule: () => make("hr"),
  list,
  table,
  quote: (lines) => make("blockquote", ...render(lines.map((line) => line.replace(/^ {0,3}> ?/, "")).join("\n"))),
  text: paragraph,
};

function kindOf(line) {
  if (FENCE.test(line)) return "fence";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (ITEM.test(line)) return "list";
  if (/^ {0,3}>/.test(line)) return "quote";
  if (/^\s*\|/.test(line)) return "table";
  return "text";
}

/** A text cut into blocks: { kind, lines }. A block only ever grows at the end of the text. */
function blocks(text) {
  const found = [];
  let current = null;
  for (const line of text.split("\n")) {
    if (current?.kind === "fence") {
      current.lines.push(line);
      if (line.trim().startsWith(current.mark) && !line.trim().slice(current.mark.length).trim()) current = null;
      continue;
    }
    if (!line.trim()) {
      current = null;
      continue;
    }
    let kind = kindOf(line);
    if (kind === "text" && current?.kind === "list") kind = "list";
    if (current?.kind !== kind || ["heading", "rule", "fence"].includes(kind)) {
      current = { kind, lines: [], mark: FENCE.exec(line)?.[1] };
      found.push(current);
    }
    current.lines.push(line);
  }
  return found;
}

const render = (text) => blocks(text).map(({ kind, lines }) => MAKE[kind](lines));

/** Shows a text that grows: blocks that have not changed keep their elements, and with them selections and scroll. */
export class Markdown {
  #element;
  #shown = [];

  constructor(element) {
    this.#element = element;
  }

  show(text) {
    const wanted = blocks(text);
    wanted.forEach(({ kind, lines }, place) => {
      const source = lines.join("\n");
      if (this.#shown[place] === source) return;
      const made = MAKE[kind](lines);
      if (place < this.#shown.length) this.#element.children[place].replaceWith(made);
      else this.#element.append(made);
      this.#shown[place] = source;
    });
    this.#shown.length = wanted.length;
    while (this.#element.children.length > wanted.length) this.#element.lastChild.remove();
  }
}
