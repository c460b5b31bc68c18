(function () {
  'use strict';
  var runs = {};  // by name: what is known, and its row
  var body = document.querySelector('#runs tbody');
  var find = document.getElementById('find');
  var sort = document.getElementById('sort');
  var connection = document.getElementById('connection');
  var compare = document.getElementById('compare');
  var complete = true;

  function number(value) {
    if (value === null || value === undefined) return '';
    var size = Math.abs(value);
    return size !== 0 && (size >= 1e6 || size < 1e-3) ? value.toExponential(3) : String(+value.toPrecision(4));
  }
  function rate(value) {
    if (!value || value <= 0) return '';
    return value >= 1 ? number(value) + ' steps/s' : number(1 / value) + ' s/step';
  }
  function set(cell, text) { if (cell.textContent !== text) cell.textContent = text; }
  function tally(card, cell) {
    var counts = {};
    Object.keys(card.laws).forEach(function (law) { counts[card.laws[law]] = (counts[card.laws[law]] || 0) + 1; });
    var words = [['VIOLATED', 'violated'], ['HOLDS', 'hold'], ['UNDERPOWERED', 'underpowered'], ['NOT_YET', 'not yet']];
    var key = JSON.stringify(counts);
    if (cell.dataset.key === key) return;
    cell.dataset.key = key;
    cell.textContent = '';
    words.forEach(function (word) {
      if (!counts[word[0]]) return;
      var part = document.createElement('b');
      part.className = word[0];
      part.textContent = counts[word[0]] + ' ' + word[1];
      cell.appendChild(part);
    });
  }
  function draw(run) {
    var card = run.card;
    if (!run.row) {
      run.row = document.createElement('tr');
      ['run', 'at', 'number', 'number', 'number', 'laws', 'remarks'].forEach(function (name) {
        var cell = document.createElement('td');
        cell.className = name;
        run.row.appendChild(cell);
      });
      var link = document.createElement('a');
      link.href = '/run/' + card.name.split('/').map(encodeURIComponent).join('/');
      link.textContent = card.name;
      // Two or more that are chosen can be compared.
      run.chosen = document.createElement('input');
      run.chosen.type = 'checkbox';
      run.chosen.setAttribute('aria-label', 'compare ' + card.name);
      run.chosen.onchange = offer;
      run.row.cells[0].appendChild(run.chosen);
      run.row.cells[0].appendChild(link);
      run.row.cells[0].appendChild(document.createElement('small'));
      run.row.cells[1].appendChild(document.createElement('span'));
    }
    var cells = run.row.cells;
    set(cells[0].lastChild, [card.title, card.optimizer].filter(Boolean).join(', '));
    var state = cells[1].firstChild;
    set(state, card.state);
    if (state.className !== 'state ' + card.state) state.className = 'state ' + card.state;
    run.row.title = card.why;
    set(cells[2], card.step === null ? (card.is_read ? '' : 'not read yet') : String(card.step));
    set(cells[3], card.state === 'live' ? rate(card.steps_per_second) : '');
    set(cells[4], card.loss === null ? (card.has_loss ? 'not finite' : '') : number(card.loss));
    tally(card, cells[5]);
    var loud = card.alarms.filter(function (alarm) { return alarm.severity !== 'note'; });
    set(cells[6], loud.map(function (alarm) { return alarm.title; }).join('; '));
    var broken = card.alarms.some(function (alarm) { return alarm.severity === 'alarm'; });
    cells[6].className = broken ? 'remarks alarm' : 'remarks';
  }
  function offer() {
    var names = Object.keys(runs).filter(function (name) { return runs[name].chosen.checked; }).sort();
    var most = 20;
    compare.hidden = names.length === 0;
    if (names.length < 2 || names.length > most) {
      compare.removeAttribute('href');
      set(compare, names.length < 2 ? 'Choose another run to compare it with' : 'At most ' + most + ' runs can be compared');
      return;
    }
    set(compare, 'Compare ' + names.length + ' runs');
    compare.href = '/compare?' + names.map(function (name) { return 'run=' + encodeURIComponent(name); }).join('&');
  }
  var orders = {
    start: function (a, b) { return b.card.start_seconds - a.card.start_seconds; },
    name: function (a, b) { return a.card.name < b.card.name ? -1 : 1; },
    loss: function (a, b) {
      var x = a.card.loss === null ? Infinity : a.card.loss, y = b.card.loss === null ? Infinity : b.card.loss;
      return x < y ? -1 : x > y ? 1 : 0;
    },
    alarms: function (a, b) { return b.card.alarms.length - a.card.alarms.length; }
  };
  // Rows are moved only where their order has changed.
  function arrange() {
    var wanted = find.value.toLowerCase();
    var shown = Object.keys(runs).map(function (name) { return runs[name]; }).filter(function (run) {
      return (run.card.name + ' ' + run.card.title + ' ' + run.card.state).toLowerCase().indexOf(wanted) >= 0;
    });
    shown.sort(function (a, b) { return orders[sort.value](a, b) || orders.name(a, b); });
    shown.forEach(function (run, i) {
      if (body.children[i] !== run.row) body.insertBefore(run.row, body.children[i] || null);
    });
    while (body.children.length > shown.length) body.removeChild(body.lastChild);
    var all = Object.keys(runs).length;
    var live = Object.keys(runs).filter(function (name) { return runs[name].card.state === 'live'; }).length;
    set(document.getElementById('summary'), all === 0 ? 'There is no run yet.' :
      all + (all === 1 ? ' run, ' : ' runs, ') + live + ' live' + (complete ? '' : '; there are more, which are not shown') +
      (shown.length < all ? '; ' + shown.length + ' shown' : ''));
  }
  find.oninput = arrange;
  sort.onchange = arrange;
  var source = new EventSource('/events');
  source.onmessage = function (event) {
    var message = JSON.parse(event.data);
    if (message.all) {
      var names = {};
      message.runs.forEach(function (card) { names[card.name] = true; });
      Object.keys(runs).forEach(function (name) { if (!names[name]) delete runs[name]; });
    }
    message.removed.forEach(function (name) { delete runs[name]; });
    complete = message.complete;
    message.runs.forEach(function (card) {
      var run = runs[card.name] || (runs[card.name] = {});
      run.card = card;
      draw(run);
    });
    arrange();
    offer();
  };
  source.onopen = function () { connection.textContent = ''; connection.className = ''; };
  source.onerror = function () { connection.textContent = 'Connection lost; trying again.'; connection.className = 'lost'; };
}());
