// Sorting by a click on a heading, and a box to filter the rows; the page is complete without.
for (const table of document.querySelectorAll("table.items")) {
  const body = table.tBodies[0], rows = [...body.rows];
  const value = (row, i) => row.cells[i].textContent.replace(/\u202f/g, "").replace("\u2212", "-");
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.onclick = () => {
      const up = head.getAttribute("aria-sort") === "descending";
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const numeric = head.classList.contains("n"), sign = up ? 1 : -1;
      const number = (row) => { const n = parseFloat(value(row, i)); return Number.isNaN(n) ? -Infinity : n; };
      rows.sort((a, b) => sign * (numeric ? number(a) - number(b) : value(a, i).localeCompare(value(b, i))));
      body.append(...rows);
    };
  });
  const box = document.createElement("input");
  box.type = "search";
  box.placeholder = "filter: an id, a modality, a language";
  box.setAttribute("aria-label", "Filter the items");
  box.oninput = () => {
    const wanted = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
  };
  table.closest(".scroll").before(box);
}
