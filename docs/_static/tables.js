document.addEventListener("DOMContentLoaded", () => {
  // Names in cells may break after an underscore, a dot or a slash; unlike a space of zero width, <wbr> is not copied.
  for (const cell of document.querySelectorAll("article td, article th")) {
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    const texts = [];
    while (walker.nextNode()) texts.push(walker.currentNode);
    for (const text of texts) {
      const parts = text.data.split(/(?<=[a-z0-9][_/.])(?=[a-z])/i);
      if (parts.length > 1) {
        text.replaceWith(...parts.flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part])));
      }
    }
  }
  // In a narrow window, site.css shows each row of a wide table as a list: every cell below the other, with its column.
  for (const table of document.querySelectorAll("article table.table")) {
    const names = [...table.querySelectorAll("thead th")].map((cell) => cell.innerText.trim());
    if (names.length > 4 || (names.length && table.scrollWidth > table.parentElement.clientWidth)) {
      table.classList.add("wide");
      for (const row of table.tBodies[0].rows) {
        [...row.cells].forEach((cell, i) => (cell.dataset.column = names[i]));
      }
    }
  }
});
