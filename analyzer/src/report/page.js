// The page of one run: charts, the heatmap with the series chosen, links to them, and what a live page changes.
tycho.page = function (data) {
  'use strict';
  var statistic = document.getElementById('statistic');
  var scale = document.getElementById('scale');
  var chosen = 0;
  var chart = null;
  var show = tycho.show, wide = tycho.series.wide, at = tycho.series.at;
  var blue = tycho.dark ? '#56b4e9' : '#0072b2', orange = tycho.dark ? '#f0955a' : '#d55e00';

  function step(bucket) { return data.first_step + bucket * data.steps_per_bucket; }
  function current() { return data.series[statistic.selectedIndex]; }
  function isLogarithmic(entities) {
    return scale.value === 'log' || (scale.value === 'auto' && wide(entities));
  }
  // Axes in the colour of text, whatever the paper's.
  var ink = getComputedStyle(document.documentElement).getPropertyValue('--soft').trim() || '#57606a';
  function quantity(entry) {
    return tycho.title(entry.statistic) + tycho.unit(entry);
  }
  function drawChart() {
    var entry = current();
    var entity = entry.all[chosen];
    var prediction = data.predictions.filter(function (p) {
      return p.statistic === entry.statistic && p.scope === entity.scope;
    })[0];
    var level = prediction && tycho.isSquare(entry.statistic) ? Math.sqrt(prediction.level) : prediction && prediction.level;
    var interval = entity.low;
    var spread = !interval && entity.min;
    var labels = ['step', interval ? 'mean with its 95 % interval' :
      spread ? 'mean; band: from least to largest of the steps it stands for' : entity.levels ? 'mean' : 'value'];
    if (prediction) labels.push('predicted: ' + prediction.law);
    var points = [];
    for (var b = 0; b < data.buckets; b += entity.stride) {
      var i = b / entity.stride;
      var mean = at(entity, b);
      var cell = [null, null, null];
      if (mean !== null) cell = spread ? [entity.min[i], mean, entity.max[i]] : interval ? [interval[i], mean, entity.high[i]] : [mean, mean, mean];
      var row = [step(b), cell];
      if (prediction) row.push([level, level, level]);
      points.push(row);
    }
    document.getElementById('title').textContent = tycho.title(entry.statistic) + ' of ' + entity.name + tycho.unit(entry);
    document.getElementById('chart').setAttribute('aria-label', document.getElementById('title').textContent);
    document.getElementById('definition').textContent = entry.definition +
      (tycho.isSquare(entry.statistic) ? ' The chart shows the root (recorded as ' + entry.statistic + ').' : '') +
      (entity.levels ? ' For lack of space this series has ' + entity.mean.length + ' stretches, each rounded to one of 254 levels; ' +
        'tycho export has every value.' : '');
    var logarithmic = isLogarithmic([entity]);
    if (chart) chart.destroy();
    chart = new Dygraph(document.getElementById('chart'), points, {
      labels: labels, customBars: true, logscale: logarithmic, connectSeparatedPoints: true, legendFormatter: tycho.legend,
      colors: [blue, orange], strokeWidth: 1.8, fillAlpha: 0.22, drawPoints: points.length < 60, pointSize: 2.5,
      xlabel: 'step', ylabel: quantity(entry), axisLabelFontSize: 12, axisLineColor: ink, gridLineColor: 'rgba(128,128,128,.25)', legend: 'always',
      series: prediction ? seriesStyle(labels[2]) : {},
      axes: { y: { axisLabelFormatter: tycho.tick, valueFormatter: function (v) { return show(v, entity.levels ? 3 : 4); }, axisLabelWidth: 62 } }
    });
    var body = document.getElementById('values');
    body.textContent = '';
    var digits = entity.levels ? 3 : 4;
    for (b = 0; b < entity.mean.length; b++) {
      var m = entity.mean[b];
      var bad = entity.not_finite.indexOf(b) >= 0;
      if ((m === null || m === undefined) && !bad) continue;
      var tr = tycho.make('tr', null, body);
      var given = interval && entity.has_interval[b] !== null;
      [step(b * entity.stride), show(m, digits), given ? '[' + show(entity.low[b]) + ', ' + show(entity.high[b]) + ']' : '',
        entity.levels ? '' : show(entity.min ? entity.min[b] : m), entity.levels ? '' : show(entity.max ? entity.max[b] : m), bad ? 'yes' : '']
        .forEach(function (text) { tycho.make('td', text, tr).className = 'number'; });
    }
  }
  function seriesStyle(label) {
    var style = {};
    style[label] = { strokePattern: [7, 4], strokeWidth: 2, drawPoints: false };
    return style;
  }
  var heat = tycho.heat({ data: function () { return data; }, entry: current, chosen: function () { return chosen; },
    logarithmic: isLogarithmic, choose: choose });
  function choose(row) {
    chosen = row;
    heat.draw();
    drawChart();
  }
  // `row`: the place of a series among those of the statistic.
  function select(row) {
    chosen = row || 0;
    heat.regroup(current().all.length);
    if (chosen) heat.reveal(chosen);
    heat.draw();
    drawChart();
  }
  // Small charts of what is worth a first look; only of what was recorded.
  var overview = ['loss', 'probe_loss', 'learning_rate', 'grad_norm_sq', 'weight_norm_sq', 'update_norm_sq', 'angular_update',
    'noise_scale', 'activation_rms', 'activation_grad_rms', 'dead_fraction', 'adam_update_rms', 'feature_change_relative',
    'batch_sharpness', 'critical_sharpness', 'sharpness', 'probe_error'];
  var small = {};  // charts by statistic
  function smallPoints(entities) {
    var points = [];
    for (var b = 0; b < data.buckets; b++) {
      var row = [step(b)].concat(entities.map(function (entity) { return at(entity, b); }));
      if (row.slice(1).some(function (v) { return v !== null; })) points.push(row);
    }
    return points;
  }
  // `changed`: by index, the series that are to be drawn again; undefined: all.
  function drawOverview(changed) {
    var place = document.getElementById('multiples');
    overview.forEach(function (name) {
      var candidates = data.series.filter(function (entry) { return entry.statistic === name; });
      if (!candidates.length) return;
      var entry = candidates[0];
      if (changed && !changed[data.series.indexOf(entry)] && name !== 'loss') return;
      var entities = tycho.series.some(data, entry, 60);
      // The held-out loss belongs beside the training loss.
      var heldOut = name === 'loss' && entry.scope === 'run' && find('validation_loss', 'run');
      if (heldOut) entities = entities.concat(heldOut.all);
      var points = smallPoints(entities);
      if (points.length < 2) return;
      if (small[name]) {
        small[name].updateOptions({ file: points, logscale: wide(entities) });
        return;
      }
      var figure = tycho.make('figure', null, place);
      tycho.make('figcaption', quantity(entry) + (heldOut ? ' (blue) and held-out loss (orange)' : entities.length < entry.all.length ? ', ' + entities.length + ' of ' + entry.all.length : ''), figure);
      var box = tycho.make('div', null, figure);
      box.className = 'small';
      figure.title = entry.definition;
      small[name] = new Dygraph(box, points, {
        labels: ['step'].concat(entities.map(function (entity, i) { return heldOut && i ? 'held out' : entity.name; })),
        logscale: wide(entities), legend: 'never', connectSeparatedPoints: true, strokeWidth: 1.3,
        drawPoints: points.length < 30, pointSize: 2, interactionModel: {}, axisLabelFontSize: 11,
        axisLineColor: ink, gridLineColor: 'rgba(128,128,128,.22)', highlightCircleSize: 0,
        colors: entities.map(function (entity, i) {
          return entities.length === 1 || (heldOut && !i) ? blue : heldOut ? orange : tycho.lineColour(i / (entities.length - 1));
        }),
        xlabel: 'step', xLabelHeight: 14,
        axes: { y: { axisLabelFormatter: tycho.tick, axisLabelWidth: 52, pixelsPerLabel: 24 }, x: { axisLabelWidth: 44, pixelsPerLabel: 60 } }
      });
      tycho.pressable(figure, function () {
        statistic.selectedIndex = data.series.indexOf(entry);
        select();
        document.getElementById('views').scrollIntoView();
      });
    });
    document.getElementById('overview').style.display = place.children.length ? '' : 'none';
  }
  function find(name, scope) {
    return data.series.filter(function (entry) { return entry.statistic === name && (!scope || entry.scope === scope); })[0];
  }
  function box(title) {
    var figure = tycho.make('figure', null, document.getElementById('curves'));
    tycho.make('figcaption', title, figure);
    var div = tycho.make('div', null, figure);
    div.className = 'small';
    return div;
  }
  var curves = [], zooms = {};  // by title
  function curve(title, points, options) {
    if (points.length < 2) return;
    var common = {
      connectSeparatedPoints: true, strokeWidth: 1.6, fillAlpha: 0.22, drawPoints: points.length < 60, pointSize: 2, legend: 'always',
      legendFormatter: tycho.legend, axisLabelFontSize: 11, axisLineColor: ink, gridLineColor: 'rgba(128,128,128,.22)', xlabel: 'step', xLabelHeight: 16,
      axes: { y: { axisLabelFormatter: tycho.tick, valueFormatter: function (v) { return show(v); }, axisLabelWidth: 60 },
        x: { valueFormatter: function (v) { return show(v); } } }
    };
    Object.keys(options).forEach(function (key) { common[key] = options[key]; });
    var place = box(title);
    var chart = new Dygraph(place, points, common);
    chart.tychoTitle = title;
    tycho.zoomByKeys(place, function () { return chart; });
    place.setAttribute('aria-label', title);
    if (zooms[title]) chart.updateOptions(zooms[title]);
    curves.push(chart);
  }
  // The sharpness that the optimizer feels against the largest it can stand, which moves with the learning rate.
  function drawEdge() {
    var sharpness = find('preconditioned_sharpness', 'run');
    var threshold = find('stability_threshold', 'run');
    if (!sharpness) return;
    var bound = find('preconditioned_sharpness_error_bound', 'run');
    var entities = [sharpness.all[0]].concat(threshold ? [threshold.all[0]] : []);
    var labels = ['step', bound ? 'sharpness with its error bound' : 'sharpness'];
    if (threshold) labels.push('edge of stability');
    var points = [];
    for (var b = 0; b < data.buckets; b++) {
      var s = at(entities[0], b);
      if (s === null) continue;
      var half = bound ? at(bound.all[0], b) || 0 : 0;
      var row = [step(b), [s - half, s, s + half]];
      var t = threshold ? at(entities[1], b) : null;
      if (threshold) row.push([t, t, t]);
      points.push(row);
    }
    curve('sharpness, as the optimizer feels it, and the edge of stability', points, {
      labels: labels, customBars: true, logscale: wide(entities), colors: [blue, orange],
      series: threshold ? seriesStyle(labels[2]) : {}
    });
  }
  function drawMany(title, entry, options) {
    if (!entry) return;
    var entities = tycho.series.some(data, entry, 40);
    var points = [];
    for (var b = 0; b < data.buckets; b++) {
      var row = [step(b)].concat(entities.map(function (entity) { return at(entity, b); }));
      if (row.slice(1).some(function (v) { return v !== null; })) points.push(row);
    }
    options.labels = ['step'].concat(entities.map(function (entity) { return entity.name; }));
    options.colors = entities.map(function (entity, i) {
      return tycho.lineColour(entities.length > 1 ? i / (entities.length - 1) : 0.3);
    });
    options.legend = 'onmouseover';
    curve(title, points, options);
  }
  // Each node of the quadrature as a narrow Gaussian, because a density cannot be seen in sticks.
  function drawSpectrum() {
    var nodes = data.spectrum.node, weights = data.spectrum.weight;
    var low = Math.min.apply(null, nodes), high = Math.max.apply(null, nodes);
    if (nodes.length < 2 || !(high > low) || !isFinite(high - low)) return;
    var width = (high - low) / 80;
    var points = [];
    for (var i = 0; i <= 320; i++) {
      var x = low - 4 * width + (high - low + 8 * width) * i / 320;
      var sum = 0;
      for (var k = 0; k < nodes.length; k++) {
        var z = (x - nodes[k]) / width;
        sum += weights[k] * Math.exp(-z * z / 2) / (width * Math.sqrt(2 * Math.PI));
      }
      points.push([x, sum]);
    }
    var top = Math.max.apply(null, points.map(function (p) { return p[1]; }));
    points.forEach(function (p) { p[1] = Math.max(p[1], 1e-10 * top); });  // a logarithm has no 0
    curve('spectral density of the Hessian at step ' + data.spectrum.step, points, {
      labels: ['eigenvalue', 'density'], logscale: top > 0, xlabel: 'eigenvalue', colors: [blue], fillGraph: true, drawPoints: false
    });
  }
  function drawCurvature() {
    if (!document.getElementById('curves')) return;
    zooms = {};
    curves.splice(0).forEach(function (old) {
      zooms[old.tychoTitle] = tycho.zoomOf(old);
      old.destroy();
    });
    document.getElementById('curves').textContent = '';
    drawEdge();
    drawMany('share of the top eigenvector by layer',
      find('preconditioned_eigenvector_share', 'layers') || find('top_eigenvector_share', 'layers'), { stackedGraph: true, valueRange: [0, 1.05] });
    var eigenvalues = find('hessian_eigenvalue', 'positions');
    if (eigenvalues) drawMany('largest eigenvalues of the Hessian', eigenvalues, { logscale: wide(eigenvalues.all) });
    drawSpectrum();
  }
  data.series.forEach(function (entry) { tycho.series.expand(data, entry); });
  if (!data.series.length) {
    document.getElementById('views').textContent = 'No statistic was recorded.';
    document.getElementById('overview').style.display = 'none';
    document.getElementById('layers').style.display = 'none';
    return null;
  }
  function fillChoice() {
    statistic.textContent = '';
    data.series.forEach(function (entry) {
      var option = document.createElement('option');
      option.textContent = tycho.title(entry.statistic) + ' (' + entry.scope + ')';
      statistic.appendChild(option);
    });
  }
  fillChoice();
  statistic.onchange = function () { select(); };
  scale.onchange = function () { choose(chosen); };
  var table = tycho.layers({
    data: function () { return data; },
    columns: function () { return data.layers.columns.map(function (c) { return c.statistic; }); },
    show: function (name, layer) {
      var entry = find(name, 'layers') || find('grad_norm_sq', 'layers') || find(current().statistic, 'layers');
      if (!entry) return;
      var row = 0;
      entry.all.forEach(function (entity, i) { if (entity.id === layer) row = i; });
      statistic.selectedIndex = data.series.indexOf(entry);
      select(row);
    }
  });
  // Links to charts, those too that a live page brings later.
  document.addEventListener('click', function (event) {
    var link = event.target.closest('a[data-statistic]');
    if (!link) return;
    // The very series, or else the first of the statistic.
    var found = null;
    data.series.forEach(function (entry, i) {
      if (entry.statistic !== link.dataset.statistic) return;
      entry.all.forEach(function (entity, r) {
        if (!found || (entity.scope === link.dataset.scope && !found.exact))
          found = { series: i, row: r, exact: entity.scope === link.dataset.scope };
      });
    });
    if (!found) return;
    statistic.selectedIndex = found.series;
    select(found.row);
  });
  tycho.zoomByKeys(document.getElementById('chart'), function () { return chart; });
  drawOverview();
  drawCurvature();
  table.draw();
  if (data.left_out.length) {
    document.getElementById('left-out').textContent = 'For lack of space this page leaves out: ' + data.left_out.join(', ') +
      '. tycho export has every value.';
  }
  var first = 0;
  ['grad_norm_sq', 'activation_rms', 'loss'].some(function (name) {
    return data.series.some(function (entry, i) {
      if (entry.statistic !== name) return false;
      first = i;
      return true;
    });
  });
  statistic.selectedIndex = first;
  select();

  // A link to a law or to a series: #law=edge_of_stability&layer=2, #statistic=grad_norm_sq&layer=conv1. A layer is its
  // path, or its place among those of the series.
  function go() {
    var wanted = {};
    location.hash.slice(1).split('&').forEach(function (pair) {
      var equals = pair.indexOf('=');
      try {
        if (equals > 0) wanted[pair.slice(0, equals)] = decodeURIComponent(pair.slice(equals + 1));
      } catch (error) { /* no link of ours */ }
    });
    var law = wanted.law && document.getElementById('law-' + wanted.law);
    var name = wanted.statistic;
    if (law) {
      law.open = true;
      var evidence = law.querySelector('a[data-statistic]');
      if (!name && evidence) name = evidence.dataset.statistic;
    }
    if (name || wanted.layer !== undefined) {
      var entry = (name && wanted.layer !== undefined && find(name, 'layers')) || (name && find(name)) || current();
      var row = 0;
      entry.all.forEach(function (entity, i) {
        if ('layer:' + wanted.layer === entity.scope || wanted.layer === entity.name || wanted.layer === String(i)) row = i;
      });
      statistic.selectedIndex = data.series.indexOf(entry);
      select(row);
    }
    if (law) law.scrollIntoView();
    else if (name) document.getElementById('views').scrollIntoView();
  }
  window.addEventListener('hashchange', go);
  if (location.hash) go();

  // For a page that is brought up to date: what was appended to the series (or all of them anew), drawn where it
  // changed.
  function update(changes, all) {
    var changed = {};
    if (all) {
      var shown = current(), scope = shown.all[chosen].scope;
      data = all;
      data.series.forEach(function (entry) { tycho.series.expand(data, entry); });
      Object.keys(small).forEach(function (name) { small[name].destroy(); });
      small = {};
      document.getElementById('multiples').textContent = '';
      fillChoice();
      statistic.selectedIndex = Math.max(0, data.series.indexOf(find(shown.statistic, shown.scope)));
      chosen = 0;
      current().all.forEach(function (entity, i) { if (entity.scope === scope) chosen = i; });
      data.series.forEach(function (entry, i) { changed[i] = true; });
    } else {
      Object.keys(changes).forEach(function (key) { if (key !== 'series') data[key] = changes[key]; });
      (changes.series || []).forEach(function (part) {
        var entry = data.series[part.index];
        changed[part.index] = true;
        Object.keys(part.entities || {}).forEach(function (number) {
          var entity = entry.entities[number];
          var arrays = part.entities[number];
          Object.keys(arrays).forEach(function (key) {
            if (arrays[key] === null) { delete entity[key]; return; }
            entity[key] = (entity[key] || []).slice(0, arrays[key].from).concat(arrays[key].values);
          });
        });
        if (part.rest) entry.rest = part.rest;
        tycho.series.expand(data, entry);
      });
    }
    drawOverview(changed);
    if (all || changes.layers) table.draw();
    if (all || changes.spectrum || data.series.some(function (entry, i) {
      return changed[i] && /sharpness|eigenvector|eigenvalue|stability_threshold/.test(entry.statistic);
    })) drawCurvature();
    if (!changed[statistic.selectedIndex]) return;
    var zoom = tycho.zoomOf(chart);
    heat.draw();
    drawChart();
    if (zoom) chart.updateOptions(zoom);
  }
  return update;
};
(function () {
  'use strict';
  // What comes before the series are unpacked waits.
  var waiting = [];
  window.tychoPage = { update: function (changes, all) { waiting.push([changes, all]); } };
  tycho.unpack(document.getElementById('data'), function (data) {
    var update = tycho.page(data);
    if (!update) {
      delete window.tychoPage;
      return;
    }
    window.tychoPage.update = update;
    waiting.splice(0).forEach(function (each) { update(each[0], each[1]); });
    document.documentElement.dataset.ready = 'yes';
  });
}());
