// The headings of a table sort its rows, by mouse and by keyboard.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const cell = (row) => row.cells[column].textContent;
    const isWords = column === 0 || heading.classList.contains("words");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      // Words from A and numbers from the highest first; a second click turns them round.
      const first = isWords ? "ascending" : "descending";
      const second = isWords ? "descending" : "ascending";
      const order = heading.getAttribute("aria-sort") === first ? second : first;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        // Numbers in words, as those with their deviation, by their size too.
        const options = { numeric: true };
        if (isWords) return sign * cell(a).localeCompare(cell(b), undefined, options);
        const [x, y] = [Number(cell(a)), Number(cell(b))]; // What is no number, a dash, comes last.
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return sign * (x - y);
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
