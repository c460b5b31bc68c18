#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "tycho/analyzer/law.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

// What pages share.

/// As text of a page: names come from the user's program, whatever they hold.
std::string escape(const std::string& text);
/// For a script element, inside which nothing may look like a tag.
std::string script_json(const nlohmann::json& value);
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
