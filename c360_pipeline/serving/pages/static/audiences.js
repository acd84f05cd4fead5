"use strict";
// Rows of the form of an audience: added, removed, and showing what their kind asks for.
const list = document.getElementById("conditions");
const another = document.getElementById("another");
const show = (row) => {
  const kind = row.querySelector("[name=kind]").value;
  row.dataset.kind = kind;
  row.querySelector("[name=name]").setAttribute("list", `names-${kind}`);
};
const changed = () => list.dispatchEvent(new Event("conditions", { bubbles: true }));
if (list && another) {
  document.getElementById("add").addEventListener("click", () => {
    list.append(another.content.cloneNode(true));
    show(list.lastElementChild);
    list.lastElementChild.querySelector("[name=name]").focus();
    changed();
  });
  list.addEventListener("change", (event) => {
    if (event.target.name === "kind") show(event.target.closest("li"));
  });
  list.addEventListener("click", (event) => {
    if (!event.target.classList.contains("remove") || list.children.length === 1) return;
    event.target.closest("li").remove();
    changed();
  });
}
