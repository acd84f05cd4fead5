"use strict";
// Draws the graph around a customer; colours follow the page's own.
const place = document.getElementById("neighbourhood");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const draw = async () => {
  const answer = await fetch(place.dataset.from, { headers: { accept: "application/json" } });
  if (!answer.ok) {
    place.textContent = "The graph can't be shown now.";
    return;
  }
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  cytoscape({
    container: place,
    elements: await answer.json(),
    userZoomingEnabled: false,
    layout: { name: "cose", animate: !still, padding: 16, randomize: false },
    style: [
      { selector: "node", style: { label: "data(name)", "font-size": 9, width: 18, height: 18, color: colour("--ink"), "background-color": colour("--quiet"), "text-max-width": 90, "text-wrap": "ellipsis", "text-valign": "bottom", "text-margin-y": 3 } },
      { selector: 'node[label = "User"]', style: { "background-color": colour("--accent") } },
      { selector: 'node[label = "Product"]', style: { "background-color": colour("--good"), shape: "round-rectangle" } },
      { selector: 'node[label = "Account"]', style: { "background-color": colour("--warn"), shape: "diamond" } },
      { selector: 'node[label = "Journey"]', style: { "background-color": colour("--bad"), shape: "hexagon" } },
      { selector: "edge", style: { width: 1, "line-color": colour("--line"), "curve-style": "bezier", "target-arrow-shape": "triangle", "target-arrow-color": colour("--line"), "arrow-scale": 0.6 } },
    ],
  });
  place.dataset.drawn = "yes";
};
if (place) draw();
