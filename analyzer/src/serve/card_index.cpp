#include "card_index.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>

#include "tycho/trace/file_system.h"

namespace tycho::analyzer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kFormat = "tycho-card-1";
constexpr const char* kSuffix = ".card";
constexpr std::chrono::hours kKeptUnused{24 * 90};

json real(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

double real(const json& value) {
  if (value.is_number()) return value.get<double>();
  const auto text = value.get<std::string>();
  if (text == "nan") return kUnknown;
  if (text != "inf" && text != "-inf") throw std::invalid_argument(text);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  return text == "inf" ? kInfinity : -kInfinity;
}

template <typename Enum>
Enum named(const json& value, std::initializer_list<Enum> all) {
  const auto text = value.get<std::string>();
  for (const Enum each : all) {
    if (text == to_string(each)) return each;
  }
  throw std::invalid_argument(text);
}

Verdict verdict_of(const json& value) {
  return named(value, {Verdict::kHolds, Verdict::kViolated, Verdict::kNotApplicable,
                       Verdict::kUnderpowered, Verdict::kNotYet, Verdict::kNotMeasured});
}

json to_json(const RunCard& card) {
  json laws = json::array();
  for (const auto& [law, verdict] : card.laws) laws.push_back({law, to_string(verdict)});
  json remarks = json::array();
  for (const Remark& r : card.remarks) {
    remarks.push_back({{"code", r.code},
                       {"severity", to_string(r.severity)},
                       {"title", r.title},
                       {"text", r.text},
                       {"step", r.step},
                       {"value", real(r.value)},
                       {"statistic", r.statistic},
                       {"scope", r.scope}});
  }
  return {{"title", card.title},
          {"optimizer", card.optimizer},
          {"start_time_ns", card.start_time_ns},
          {"state", to_string(card.state)},
          {"why", card.why},
          {"step", card.step},
          {"steps_per_second", real(card.steps_per_second)},
          {"has_loss", card.has_loss},
          {"loss", real(card.loss)},
          {"lowest_loss", real(card.lowest_loss)},
          {"cost", real(card.cost)},
          {"last_time_ns", card.last_time_ns},
          {"laws", std::move(laws)},
          {"remarks", std::move(remarks)}};
}

RunCard from_json(const json& kept) {
  RunCard card;
  card.title = kept.at("title");
  card.optimizer = kept.at("optimizer");
  card.start_time_ns = kept.at("start_time_ns");
  card.state = named(kept.at("state"), {trace::RunState::kFinished, trace::RunState::kDied});
  card.why = kept.at("why");
  card.is_read = true;
  card.step = kept.at("step");
  card.steps_per_second = real(kept.at("steps_per_second"));
  card.has_loss = kept.at("has_loss");
  card.loss = real(kept.at("loss"));
  card.lowest_loss = real(kept.at("lowest_loss"));
  card.cost = real(kept.at("cost"));
  card.last_time_ns = kept.at("last_time_ns");
  for (const json& law : kept.at("laws"))
    card.laws.emplace_back(law.at(0).get<std::string>(), verdict_of(law.at(1)));
  for (const json& each : kept.at("remarks")) {
    Remark remark;
    remark.code = each.at("code");
    remark.severity =
        named(each.at("severity"), {Severity::kAlarm, Severity::kWarning, Severity::kNote});
    remark.title = each.at("title");
    remark.text = each.at("text");
    remark.step = each.at("step");
    remark.value = real(each.at("value"));
    remark.statistic = each.at("statistic");
    remark.scope = each.at("scope");
    card.remarks.push_back(std::move(remark));
  }
  return card;
}

std::string checksum(const std::string& text) {
  return fmt::format("{:08x}", ::crc32(0, reinterpret_cast<const Bytef*>(text.data()),
                                       static_cast<uInt>(text.size())));
}

std::string canonical(const std::string& path) {
  std::error_code error;
  const fs::path result = fs::weakly_canonical(path, error);
  return error ? path : result.string();
}

}  // namespace

SegmentTimes segment_times(const std::string& run_directory) {
  SegmentTimes result;
  const auto names = trace::list_segments(run_directory);
  if (!names.ok()) return result;
  for (const std::string& name : names.value()) {
    struct stat seen = {};
    if (::stat((fs::path(run_directory) / name).c_str(), &seen) != 0) return {};
    result.emplace_back(name, static_cast<uint64_t>(seen.st_size),
                        int64_t{seen.st_mtim.tv_sec} * 1'000'000'000 + seen.st_mtim.tv_nsec);
  }
  return result;
}

std::string default_cache_directory() {
  const auto absolute = [](const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr && value[0] == '/' ? std::string(value) : std::string();
  };
  if (const std::string cache = absolute("XDG_CACHE_HOME"); !cache.empty()) return cache + "/tycho";
  if (const std::string home = absolute("HOME"); !home.empty()) return home + "/.cache/tycho";
  return "";
}

bool lies_in(const std::string& path, const std::string& directory) {
  const std::string inner = canonical(path) + "/";
  const std::string outer = canonical(directory) + "/";
  return outer == "//" || inner.rfind(outer, 0) == 0;
}

Result<std::unique_ptr<CardIndex>> CardIndex::open(const std::string& directory,
                                                   const std::string& identity) {
  if (identity.empty())
    return Status(Status::Code::kNotFound, "this program was linked without a build id");
  std::error_code error;
  fs::create_directories(directory, error);
  const std::string cards = (fs::path(canonical(directory)) / "cards").string();
  if (!error) fs::create_directory(cards, error);
  if (!error) fs::permissions(cards, fs::perms::owner_all, error);
  if (error) return Status(Status::Code::kIoError, directory + ": " + error.message());
  std::vector<fs::path> unused;
  for (fs::directory_iterator entry(cards, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code gone;
    const auto changed = fs::last_write_time(entry->path(), gone);
    const auto age = fs::file_time_type::clock::now() - changed;
    if (!gone && entry->path().extension() == kSuffix && age > kKeptUnused)
      unused.push_back(entry->path());
  }
  for (const fs::path& file : unused) fs::remove(file, error);
  return std::unique_ptr<CardIndex>(new CardIndex(cards, identity));
}

std::string CardIndex::file_of(const std::string& run) const {
  // Two runs with the same file would take turns in it: the run's path stands inside.
  uint64_t hash = 14695981039346656037U;
  for (const char c : run) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211U;
  return (fs::path(directory_) / (fmt::format("{:016x}", hash) + kSuffix)).string();
}

std::optional<RunCard> CardIndex::find(const std::string& run_directory) const {
  const std::string run = canonical(run_directory);
  const std::string file = file_of(run);
  std::ifstream in(file, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(in), {});
  const size_t end = text.find('\n');
  if (end == std::string::npos || text.substr(end + 1) != checksum(text.substr(0, end)))
    return std::nullopt;
  try {
    const json kept = json::parse(text.substr(0, end));
    if (kept.at("format") != kFormat || kept.at("program") != identity_ || kept.at("run") != run ||
        kept.at("segments") != json(segment_times(run_directory)))
      return std::nullopt;
    RunCard card = from_json(kept.at("card"));
    std::error_code ignored;
    fs::last_write_time(file, fs::file_time_type::clock::now(), ignored);
    return card;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

void CardIndex::keep(const std::string& run_directory, const SegmentTimes& times,
                     const RunCard& card) const {
  const std::string run = canonical(run_directory);
  const bool ended =
      card.state == trace::RunState::kFinished || card.state == trace::RunState::kDied;
  if (times.empty() || !ended || !card.is_read || segment_times(run_directory) != times ||
      lies_in(directory_, run))
    return;
  const json kept = {{"format", kFormat},
                     {"program", identity_},
                     {"run", run},
                     {"segments", times},
                     {"card", to_json(card)}};
  const std::string text = kept.dump(-1, ' ', true, json::error_handler_t::replace);
  const std::string file = file_of(run);
  // Of two servers each writes its own.
  const std::string temporary = fmt::format("{}.{}", file, ::getpid());
  std::error_code error;
  {
    std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
    out << text << '\n' << checksum(text);
    out.close();
    if (!out) {
      fs::remove(temporary, error);
      return;
    }
  }
  fs::rename(temporary, file, error);
  if (error) fs::remove(temporary, error);
}

}  // namespace tycho::analyzer
