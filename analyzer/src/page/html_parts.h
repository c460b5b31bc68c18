#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tycho/analyzer/law.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

namespace assets {
extern const char* const page_css;
extern const char* const kit_js;
}  // namespace assets

// What pages share.

/// The begin of a page, up to <main>. Escapes the title; `style` follows the style of all pages.
std::string page_head(const std::string& title, const std::string& style);
/// The end of a page behind its <main>: the data for its scripts, what all scripts share,
/// `libraries` before it in an element of their own where there are any, and `scripts`.
std::string page_end(const nlohmann::json& data, const std::string& libraries,
                     const std::string& scripts);
/// Links to the sections of a page: id and title.
std::string contents(const std::vector<std::pair<std::string, std::string>>& sections);
/// A list of sentences, escaped.
std::string bullets(const std::vector<std::string>& items);
/// How many laws came out how.
std::string tally(const std::vector<LawDescription>& laws,
                  const std::function<Verdict(const LawDescription&)>& verdict_of);
/// A number as pages say it; empty where it is NaN.
std::string optional_number(double value);
/// The interval of a finding; empty where it has none.
std::string interval(const Finding& finding);
/// Rows of findings that a page has room for, of each of so many laws.
size_t rows_per_law(size_t laws);
/// The head of a table of findings.
extern const char* const kFindingHead;
/// The begin of a law's block, which folds: up to its formula.
std::string law_head(const LawDescription& law, Verdict verdict, bool open,
                     const std::string& says);

/// As text of a page: names come from the user's program, whatever they hold.
std::string escape(const std::string& text);
/// For a script element, inside which nothing may look like a tag.
std::string script_json(const nlohmann::json& value);
/// The script element "data": as JSON, or where that is long deflated and in base64, which kit.js
/// unpacks.
std::string data_element(const nlohmann::json& data);
/// Five significant digits; null where not finite.
nlohmann::json rounded(double value);
/// A verdict as a sign and a word.
std::string badge(Verdict verdict, int count = 1);
/// What a law assumes, asks for, warns of and rests on: the end of its block.
std::string law_footer(const LawDescription& law);
/// Without the last line of a minified file, which points to a source map that a browser's tools
/// would look for.
std::string without_source_map(const std::string& text);

}  // namespace tycho::analyzer
