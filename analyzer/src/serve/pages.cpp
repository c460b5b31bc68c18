#include "pages.h"

#include <fmt/format.h>

#include "src/page/html_parts.h"

namespace tycho::analyzer {

namespace assets {
extern const char* const page_css;
extern const char* const live_css;
extern const char* const live_js;
extern const char* const runs_js;
}  // namespace assets

namespace {

std::string head(const std::string& title) {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width,initial-scale=1\">\n<title>{}</title>\n<style>{}\n{}</style>"
      "</head><body>",
      escape(title), assets::page_css, assets::live_css);
}

std::string live_script(const std::string& name, uint64_t version) {
  return "<script>window.tychoLive = " + script_json({{"run", name}, {"version", version}}) +
         ";</script>\n<script>" + assets::live_js + "</script>\n";
}

const char* const kBar =
    "<div id=\"live\" role=\"status\"><a href=\"/\">all runs</a> <span id=\"now\"></span> <span "
    "id=\"connection\"></span></div>\n";

}  // namespace

std::string list_page() {
  return head("Tycho: runs") +
         R"html(<main class="list"><header><p class="kind">Tycho</p><h1>Runs</h1><p id="summary">Looking for runs ...</p></header>
<div class="controls"><label>Find <input id="find" type="search" autocomplete="off"></label>
<label>Sort by <select id="sort"><option value="start">start</option><option value="name">name</option><option value="loss">loss</option><option value="alarms">alarms</option></select></label>
<a id="compare" href="/compare" hidden>Compare</a> <span id="connection" role="status"></span></div>
<table id="runs"><thead><tr><th>run</th><th>state</th><th>step</th><th>rate</th><th>loss</th><th>laws</th><th>remarks</th></tr></thead>
<tbody></tbody></table></main>
<script>)html" +
         assets::runs_js + "</script>\n</body></html>\n";
}

std::string with_bar(std::string html) {
  const std::string body = "<body>";
  const size_t begin = html.find(body);
  if (begin != std::string::npos)
    html.insert(begin + body.size(), "<style>" + std::string(assets::live_css) + "</style>" + kBar);
  return html;
}

std::string live_page(const std::string& name, const RunPage& page) {
  std::string html = with_bar(page.html);
  const std::string end = "</body>";
  const size_t last = html.rfind(end);
  if (last != std::string::npos) html.insert(last, live_script(name, page.version));
  return html;
}

std::string waiting_page(const std::string& name) {
  return head(name) + kBar + "<main><header><p class=\"kind\">Mechanics report</p><h1>" +
         escape(name) + "</h1><p>The run is being read ...</p></header></main>\n" +
         live_script(name, 0) + "</body></html>\n";
}

std::string message_page(const std::string& title, const std::string& text) {
  return head(title) + "<main><header><h1>" + escape(title) + "</h1><p>" + escape(text) +
         "</p></header><p><a href=\"/\">all runs</a></p></main></body></html>\n";
}

}  // namespace tycho::analyzer
