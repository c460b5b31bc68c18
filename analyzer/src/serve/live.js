(function () {
  'use strict';
  var live = window.tychoLive;
  var now = document.getElementById('now');
  var connection = document.getElementById('connection');
  var version = live.version;
  // What scripts have drawn is theirs.
  var drawn = { multiples: true, curves: true, views: true, 'layer-table': true };

  function morph(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
      old.parentNode.replaceChild(fresh.cloneNode(true), old);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    Array.prototype.forEach.call(fresh.attributes, function (attribute) {
      // Whether something is open is up to whoever reads.
      if (attribute.name !== 'open' && old.getAttribute(attribute.name) !== attribute.value)
        old.setAttribute(attribute.name, attribute.value);
    });
    if (drawn[old.id]) return;
    var before = Array.prototype.slice.call(old.childNodes);
    var after = Array.prototype.slice.call(fresh.childNodes);
    after.forEach(function (child, i) {
      if (i < before.length) morph(before[i], child);
      else old.appendChild(child.cloneNode(true));
    });
    before.slice(after.length).forEach(function (child) { old.removeChild(child); });
  }
  function parts() {
    return Array.prototype.filter.call(document.querySelector('main').children, function (element) {
      return /^(HEADER|SECTION|DETAILS)$/.test(element.nodeName);
    });
  }
  function key(part) {
    var title = part.querySelector('h1,h2,summary');
    return part.nodeName + (part.id || (title ? title.textContent : ''));
  }
  // All parts as they are now: those that are new come where they belong, and those that are gone go.
  function arrange(fresh) {
    var main = document.querySelector('main');
    var here = {};
    parts().forEach(function (part) { here[key(part)] = part; });
    var last = null;
    fresh.forEach(function (part) {
      var old = here[key(part)];
      if (old) morph(old, part);
      else old = part.cloneNode(true);
      delete here[key(part)];
      var next = last ? last.nextElementSibling : main.firstElementChild;
      if (next !== old) main.insertBefore(old, next);
      last = old;
    });
    Object.keys(here).forEach(function (name) { main.removeChild(here[name]); });
  }
  function element(html) {
    var holder = document.createElement('template');
    holder.innerHTML = html;
    return holder.content.firstElementChild;
  }
  // Anew, but not over and over.
  function again() {
    var last = +(sessionStorage.getItem('tycho-again') || 0);
    var wait = Math.max(0, last + 5000 - Date.now());
    setTimeout(function () {
      sessionStorage.setItem('tycho-again', String(Date.now()));
      location.reload();
    }, wait);
  }
  function rate(value) {
    if (!value || value <= 0) return '';
    return value >= 1 ? +value.toPrecision(3) + ' steps/s' : +(1 / value).toPrecision(3) + ' s/step';
  }
  function tell(card) {
    if (!card) {
      now.textContent = 'The run is gone; this page shows what was read of it.';
      return;
    }
    var alarms = card.alarms.filter(function (alarm) { return alarm.severity === 'alarm'; });
    now.className = alarms.length ? 'alarm' : '';
    now.textContent = [card.state === 'died' ? 'the writer died' : card.state,
      card.step === null ? '' : 'step ' + card.step, card.state === 'live' ? rate(card.steps_per_second) : '',
      card.loss === null ? '' : 'loss ' + +card.loss.toPrecision(4), card.why,
      alarms.map(function (alarm) { return 'ALARM: ' + alarm.title; }).join('; ')].filter(Boolean).join(' \u00b7 ');
  }
  var source = new EventSource('/events/run?run=' + encodeURIComponent(live.run) + '&version=' + version);
  source.onmessage = function (event) {
    var message = JSON.parse(event.data);
    if ('card' in message) tell(message.card);
    if (!message.version) return;
    var here = parts();
    var places = Object.keys(message.parts || {});
    var whole = places.length === message.count;
    // Nothing was drawn yet, or this is not the page that the server thinks of.
    if (version === 0 || !window.tychoPage || (!whole && message.count !== here.length)) {
      source.close();
      again();
      return;
    }
    version = message.version;
    if (whole) arrange(places.map(function (place) { return element(message.parts[place]); }));
    else places.forEach(function (place) { morph(here[+place], element(message.parts[place])); });
    if (message.view || message.data) window.tychoPage.update(message.view, message.data);
  };
  source.onopen = function () { connection.textContent = ''; connection.className = ''; };
  source.onerror = function () { connection.textContent = 'Connection lost; trying again.'; connection.className = 'lost'; };
}());
