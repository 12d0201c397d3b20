"""What a person would find wrong with how a page looks: texts over each other, cut off, or beside the window."""

_FAULTS = """
() => {
  const width = document.documentElement.clientWidth;
  const faults = [];
  if (document.documentElement.scrollWidth > width) faults.push(`it is ${document.documentElement.scrollWidth} wide`);
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const text = node.textContent.trim();
    const parent = node.parentElement;
    const isSeen = parent.checkVisibility({ visibilityProperty: true }) && !parent.closest("title, option, style");
    if (text === "" || !isSeen) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    let clip = { left: -1e9, top: -1e9, right: 1e9, bottom: 1e9 };
    for (let around = parent; around !== document.body; around = around.parentElement) {
      const isCut = getComputedStyle(around).overflow !== "visible";
      if (!isCut || (around instanceof SVGElement && around.tagName !== "svg")) continue;
      const box = around.getBoundingClientRect();
      const all = range.getBoundingClientRect();
      if (all.left < box.left - 1 || all.right > box.right + 1) faults.push(`${text}: cut off`);
      clip = {
        left: Math.max(clip.left, box.left), top: Math.max(clip.top, box.top),
        right: Math.min(clip.right, box.right), bottom: Math.min(clip.bottom, box.bottom),
      };
    }
    for (const rect of range.getClientRects()) {
      const box = {
        text, left: Math.max(rect.left, clip.left), top: Math.max(rect.top, clip.top),
        right: Math.min(rect.right, clip.right), bottom: Math.min(rect.bottom, clip.bottom),
      };
      if (box.right - box.left < 1 || box.bottom - box.top < 1) continue;
      if (box.left < -0.5 || box.right > width + 0.5) faults.push(`${text}: beside the window`);
      boxes.push(box);
    }
  }
  boxes.sort((a, b) => a.top - b.top);
  boxes.forEach((a, index) => {
    for (let other = index + 1; other < boxes.length && boxes[other].top < a.bottom - 3; other += 1) {
      const b = boxes[other];
      const overlap = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      if (a.text !== b.text && overlap > 1.5) faults.push(`${a.text} over ${b.text}`);
    }
  });
  return faults;
}
"""


def faults(page) -> list[str]:
    """Return what is wrong with how a Playwright page looks, of all of it."""
    return page.evaluate(_FAULTS)
