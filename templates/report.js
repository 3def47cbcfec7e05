"use strict";
// Sorts and filters the tables. The report is complete without it. Text is only moved, never parsed as markup.
(() => {
  const key = (row, at) => {
    const cell = row.cells[at];
    return cell.dataset.rank === undefined ? cell.textContent : Number(cell.dataset.rank);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a) < String(b) ? -1 : String(a) > String(b) ? 1 : 0);
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.textContent = "";
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => compare(key(a, at), key(b, at)) * (down ? -1 : 1));
        body.append(...rows);
      });
    });
    if (body.rows.length > 8) {
      const filter = document.createElement("input");
      filter.type = "search";
      filter.className = "filter";
      filter.placeholder = "filter rows";
      filter.setAttribute("aria-label", "filter rows of: " + table.caption.textContent);
      filter.addEventListener("input", () => {
        const wanted = filter.value.toLowerCase();
        for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
      });
      table.before(filter);
    }
  }
})();
