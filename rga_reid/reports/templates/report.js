
// ---------- tables that sort by a click on a heading ----------
for (const table of document.querySelectorAll("table.sorts")) {
  const headings = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort"), numeric = heading.classList.contains("number");
      const sign = before === "descending" || (!before && !numeric) ? 1 : -1; // numbers: the highest first
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const read = (row) => {
        const cell = row.cells[column], value = cell.dataset.value;
        return value === undefined ? cell.textContent.trim() : value === "" ? null : Number(value);
      };
      const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
      const rows = [...body.rows].map((row) => [read(row), row]);
      const known = rows.filter(([value]) => value !== null).sort(([a], [b]) => sign * compare(a, b));
      body.append(...[...known, ...rows.filter(([value]) => value === null)].map(([, row]) => row)); // unknown values last
    });
  });
}

// ---------- commands to copy ----------
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const code = button.closest(".change").querySelector("code");
    code.hidden = false;
    getSelection().selectAllChildren(code);
    try { await navigator.clipboard.writeText(code.textContent); } catch { document.execCommand("copy"); }
    button.dataset.t = "explain_copied"; translatePage();
  });
}
