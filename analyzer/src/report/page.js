(function () {
  'use strict';
  var data = JSON.parse(document.getElementById('data').textContent);
  var statistic = document.getElementById('statistic');
  var scale = document.getElementById('scale');
  var rows = document.getElementById('rows');
  var heat = document.getElementById('heat');
  var chosen = 0;
  var chart = null;

  function step(bucket) { return data.first_step + bucket * data.steps_per_bucket; }
  function show(value) {
    if (value === null || value === undefined || !isFinite(value)) return '';
    var size = Math.abs(value);
    return size !== 0 && (size >= 1e5 || size < 1e-3) ? value.toExponential(3) : String(+value.toPrecision(4));
  }
  function current() { return data.series[statistic.selectedIndex]; }
  function means(entry) { return entry.mean; }

  // Perceptually even from dark to light, so that it can be read without colour too (viridis, sampled).
  var stops = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99],
    [170, 220, 50], [253, 231, 37]];
  function colour(t) {
    var at = Math.max(0, Math.min(1, t)) * (stops.length - 1);
    var i = Math.min(stops.length - 2, Math.floor(at));
    return stops[i].map(function (c, k) { return Math.round(c + (stops[i + 1][k] - c) * (at - i)); });
  }
  function drawHeat() {
    var entry = current();
    var logarithmic = scale.value === 'log';
    var low = Infinity, high = -Infinity;
    entry.entities.forEach(function (entity) {
      means(entity).forEach(function (v) {
        if (v === null || (logarithmic && v <= 0)) return;
        var x = logarithmic ? Math.log10(v) : v;
        low = Math.min(low, x);
        high = Math.max(high, x);
      });
    });
    var width = Math.max(1, data.buckets);
    var height = entry.entities.length;
    heat.width = width;
    heat.height = height;
    var rowHeight = Math.max(12, Math.min(26, Math.floor(520 / height)));
    heat.style.height = rowHeight * height + 'px';
    var context = heat.getContext('2d');
    var image = context.createImageData(width, height);
    for (var r = 0; r < height; r++) {
      var m = means(entry.entities[r]);
      for (var b = 0; b < width; b++) {
        var v = b < m.length ? m[b] : null;
        var at = 4 * (r * width + b);
        if (v === null || v === undefined || (logarithmic && v <= 0)) { image.data[at + 3] = 0; continue; }
        var x = logarithmic ? Math.log10(v) : v;
        var rgb = colour(high > low ? (x - low) / (high - low) : 0.5);
        image.data[at] = rgb[0]; image.data[at + 1] = rgb[1]; image.data[at + 2] = rgb[2]; image.data[at + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
    rows.textContent = '';
    entry.entities.forEach(function (entity, r) {
      var div = document.createElement('div');
      div.textContent = entity.name;
      div.title = entity.name;
      div.style.height = rowHeight + 'px';
      div.style.lineHeight = rowHeight + 'px';
      if (r === chosen) div.className = 'chosen';
      div.onclick = function () { choose(r); };
      rows.appendChild(div);
    });
    document.getElementById('low').textContent = isFinite(low) ? show(logarithmic ? Math.pow(10, low) : low) : '';
    document.getElementById('high').textContent = isFinite(high) ? show(logarithmic ? Math.pow(10, high) : high) : '';
    document.getElementById('from').textContent = 'step ' + step(0);
    document.getElementById('to').textContent = 'step ' + data.last_step;
  }
  function drawChart() {
    var entry = current();
    var entity = entry.entities[chosen];
    var prediction = data.predictions.filter(function (p) {
      return p.statistic === entry.statistic && p.scope === entity.scope;
    })[0];
    var labels = ['step', 'mean (band: least to largest)'];
    if (prediction) labels.push('predicted: ' + prediction.law);
    var points = [];
    for (var b = 0; b < data.buckets; b++) {
      var mean = b < entity.mean.length ? entity.mean[b] : null;
      var row = [step(b), mean === null || mean === undefined ? [null, null, null] :
        [entity.min ? entity.min[b] : mean, mean, entity.max ? entity.max[b] : mean]];
      if (prediction) row.push([prediction.level, prediction.level, prediction.level]);
      points.push(row);
    }
    document.getElementById('title').textContent = entry.statistic + ' of ' + entity.name +
      (entry.unit && entry.unit !== '1' ? ' [' + entry.unit + ']' : '');
    document.getElementById('definition').textContent = entry.definition;
    var positive = entity.mean.some(function (v) { return v !== null && v > 0; });
    if (chart) chart.destroy();
    chart = new Dygraph(document.getElementById('chart'), points, {
      labels: labels, customBars: true, logscale: scale.value === 'log' && positive, connectSeparatedPoints: false,
      colors: ['#0072b2', '#d55e00'], strokeWidth: 1.8, fillAlpha: 0.22, drawPoints: data.buckets < 60, pointSize: 2,
      xlabel: 'step', axisLabelFontSize: 12, gridLineColor: 'rgba(128,128,128,.25)', legend: 'always',
      series: prediction ? seriesStyle(labels[2]) : {},
      axes: { y: { axisLabelFormatter: show, valueFormatter: show, axisLabelWidth: 70 } }
    });
    var body = document.getElementById('values');
    body.textContent = '';
    points.forEach(function (row) {
      if (row[1][1] === null) return;
      var tr = document.createElement('tr');
      [row[0], show(row[1][1]), show(row[1][0]), show(row[1][2])].forEach(function (text) {
        var td = document.createElement('td');
        td.className = 'number';
        td.textContent = text;
        tr.appendChild(td);
      });
      body.appendChild(tr);
    });
  }
  function seriesStyle(label) {
    var style = {};
    style[label] = { strokePattern: [7, 4], strokeWidth: 2, drawPoints: false };
    return style;
  }
  function choose(row) {
    chosen = row;
    drawHeat();
    drawChart();
  }
  function select() {
    chosen = 0;
    drawHeat();
    drawChart();
  }
  if (!data.series.length) {
    document.getElementById('views').textContent = 'No statistic was recorded.';
    return;
  }
  data.series.forEach(function (entry) {
    var option = document.createElement('option');
    option.textContent = entry.statistic + ' (' + entry.scope + ')';
    statistic.appendChild(option);
  });
  statistic.onchange = select;
  scale.onchange = select;
  heat.onclick = function (event) {
    var box = heat.getBoundingClientRect();
    choose(Math.min(current().entities.length - 1, Math.floor((event.clientY - box.top) / box.height * heat.height)));
  };
  Array.prototype.forEach.call(document.querySelectorAll('a[data-statistic]'), function (link) {
    link.onclick = function () {
      data.series.forEach(function (entry, i) {
        entry.entities.forEach(function (entity, r) {
          if (entry.statistic === link.dataset.statistic && entity.scope === link.dataset.scope) {
            statistic.selectedIndex = i;
            choose(r);
          }
        });
      });
    };
  });
  var legend = document.getElementById('ramp');
  var ramp = legend.getContext('2d');
  for (var i = 0; i < legend.width; i++) {
    ramp.fillStyle = 'rgb(' + colour(i / (legend.width - 1)).join(',') + ')';
    ramp.fillRect(i, 0, 1, legend.height);
  }
  select();
}());
