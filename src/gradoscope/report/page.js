(function () {
  "use strict";
  var DARK = { "#343a46": "#dde2ea", "#6d7583": "#98a1b0", "#e3e6ea": "#2d333e", "#ffffff": "#191d24" };
  var scheme = window.matchMedia("(prefers-color-scheme: dark)");

  function draw(figure) {
    var text = figure.querySelector("script").textContent;
    if (scheme.matches) {
      Object.keys(DARK).forEach(function (light) { text = text.split(light).join(DARK[light]); });
    }
    var spec = JSON.parse(text);
    var plot = figure.querySelector(".plot");
    var narrow = plot.clientWidth < 520;
    spec.layout.showlegend = false;
    if (narrow && figure.id === "figure-layers") {
      Object.keys(spec.layout).forEach(function (k) { if (k.indexOf("xaxis") === 0) { upright(spec.layout[k]); } });
    }
    hidden(figure).forEach(function (i) { spec.data[i].visible = false; });
    legend(figure, spec.data);
    spec.layout.dragmode = narrow ? false : "zoom";
    if (narrow) { spec.layout.font.size = 12; }
    spec.layout.hoverlabel = scheme.matches ? { bgcolor: "#1d222b", font: { color: "#dde2ea" } } : { bgcolor: "#ffffff", font: { color: "#343a46" } };
    var wanted = figure.dataset.axis;
    if (wanted) { setAxis(spec.layout, wanted); }
    return Plotly.react(plot, spec.data, spec.layout, { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  }

  function upright(axis) {
    axis.tickangle = -90;
    if (!axis.tickvals) { return; }
    var every = Math.ceil(axis.tickvals.length / 12);
    ["tickvals", "ticktext"].forEach(function (key) { axis[key] = axis[key].filter(function (_, i) { return i % every === 0; }); });
  }

  function hidden(figure) {
    return (figure.dataset.hidden || "").split(",").filter(Boolean).map(Number);
  }

  // our own legend wraps with the page; Plotly's needs a column of its own on a phone
  function legend(figure, data) {
    var box = figure.querySelector(".legend");
    var off = hidden(figure);
    var entries = data.map(function (trace, i) { return { trace: trace, i: i, rank: trace.legendrank || 1000 }; })
      .filter(function (e) { return e.trace.name && e.trace.showlegend !== false; })
      .sort(function (a, b) { return a.rank - b.rank || a.i - b.i; });
    box.textContent = "";
    if (entries.length < 2) { return; }
    entries.forEach(function (e) {
      var button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(off.indexOf(e.i) < 0));
      button.appendChild(swatch(e.trace));
      button.appendChild(document.createTextNode(e.trace.name.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&")));
      button.addEventListener("click", function () {
        var now = hidden(figure);
        figure.dataset.hidden = (now.indexOf(e.i) < 0 ? now.concat(e.i) : now.filter(function (i) { return i !== e.i; })).join(",");
        draw(figure);
      });
      box.appendChild(button);
    });
  }

  function swatch(trace) {
    var ns = "http://www.w3.org/2000/svg";
    var dots = trace.mode === "markers" || trace.type === "bar";
    var colour = dots ? trace.marker.color : trace.line.color;
    colour = Array.isArray(colour) ? colour[0] : colour;
    var svg = document.createElementNS(ns, "svg");
    svg.setAttribute("width", dots ? 10 : 22);
    svg.setAttribute("height", 10);
    svg.setAttribute("aria-hidden", "true");
    var mark = document.createElementNS(ns, dots ? "circle" : "line");
    var open = dots && /open/.test(trace.marker.symbol || "");
    var shape = dots ? { cx: 5, cy: 5, r: 4, fill: open ? "none" : colour, stroke: colour, "stroke-width": 1.5 }
      : { x1: 0, y1: 5, x2: 22, y2: 5, stroke: colour, "stroke-width": trace.line.width, opacity: trace.opacity || 1,
        "stroke-dasharray": { dash: "5 3", dot: "2 3" }[trace.line.dash] || "none" };
    Object.keys(shape).forEach(function (k) { mark.setAttribute(k, shape[k]); });
    svg.appendChild(mark);
    return svg;
  }

  function setAxis(layout, kind) {
    layout.yaxis.type = kind;
    layout.yaxis.range = layout.meta[kind].slice();
  }

  function axis(figure, kind) {
    figure.dataset.axis = kind;
    figure.querySelectorAll(".toggle button").forEach(function (b) { b.setAttribute("aria-pressed", String(b.dataset.axis === kind)); });
    draw(figure);
  }

  var figures = Array.prototype.slice.call(document.querySelectorAll("figure"));
  figures.forEach(function (figure) {
    figure.querySelectorAll(".toggle button").forEach(function (button) {
      button.addEventListener("click", function () { axis(figure, button.dataset.axis); });
    });
    draw(figure);
  });
  scheme.addEventListener("change", function () { figures.forEach(draw); });

  document.querySelectorAll(".copy").forEach(function (button) {
    button.addEventListener("click", function () {
      var range = document.createRange();
      range.selectNodeContents(button.previousElementSibling);
      var selection = window.getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      // navigator.clipboard is not there on every page opened from a file
      var done = document.execCommand("copy");
      button.textContent = done ? "Copied" : "Selected";
      setTimeout(function () { button.textContent = "Copy"; }, 1600);
    });
  });
})();
