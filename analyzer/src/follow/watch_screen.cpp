#include "watch_screen.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "src/follow/text_columns.h"
#include "src/printable.h"
#include "src/report/coverage.h"
#include "src/report/text_layout.h"

namespace tycho::analyzer {
namespace {

using trace::RunState;

std::string with_code(const std::string& text, const char* code, bool colour) {
  return colour ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : text;
}

/// Lines that fit the screen. Colours go around text that was cut already.
class Lines {
 public:
  explicit Lines(const ScreenOptions& options)
      : width_(std::max<size_t>(options.width, 20)), colour_(options.colour) {}
  void add(const std::string& text, const char* code = nullptr) {
    const std::string line = cut(text, width_);
    lines_.push_back(code != nullptr ? with_code(line, code, colour_) : line);
  }
  void add_verdict(const std::string& begin, Verdict verdict, const std::string& end) {
    const std::string word = to_string(verdict);
    const std::string left = cut(begin, width_);
    const size_t used = columns(left);
    if (used + word.size() + 1 > width_) return add(begin + word);
    lines_.push_back(left + paint(word, verdict, colour_) +
                     cut(" " + end, width_ - used - word.size()));
  }
  void title(const std::string& text) {
    if (!lines_.empty()) lines_.emplace_back();
    add(text, "1");
  }
  size_t width() const { return width_; }
  size_t size() const { return lines_.size(); }
  std::vector<std::string> take() { return std::move(lines_); }

 private:
  size_t width_;
  bool colour_;
  std::vector<std::string> lines_;
};

const char* code_of(Severity severity) {
  return severity == Severity::kAlarm ? "1;7;31" : severity == Severity::kWarning ? "1;31" : "2";
}

void add_head(const FollowedRun& run, int64_t now_ns, Lines* lines) {
  const Report& report = run.report();
  std::string name = printable(report.run.run_name().empty() ? report.path : report.run.run_name());
  if (report.model.layer_size() > 0)
    name += fmt::format("  {} layers, {} parameters", report.model.layer_size(),
                        report.model.parameter_size());
  if (!report.run.optimizer().empty()) name += ", " + printable(report.run.optimizer());
  lines->add(name, "1");
  lines->add(status_text(run, now_ns));
  if (!run.why().empty()) lines->add(printable(run.why()), "2");
  if (run.two_writers())
    lines->add("two sessions write to this run; the newer one is followed", "1;31");
}

std::vector<double> means(const std::vector<Bucket>& buckets) {
  std::vector<double> values;
  values.reserve(buckets.size());
  for (const Bucket& bucket : buckets) values.push_back(bucket.mean());
  return values;
}

double last_of(const std::vector<double>& values) {
  const auto found = std::find_if(values.rbegin(), values.rend(),
                                  [](double value) { return std::isfinite(value); });
  return found == values.rend() ? kUnknown : *found;
}

void add_loss(const Report& report, const ScreenOptions& options, Lines* lines) {
  const auto losses = means(report.series.series({"loss", v1::SCOPE_RUN}, 0));
  if (losses.empty() || report.loss.observed() == 0) return;
  const std::string label = "loss ";
  const std::string end = fmt::format(" {} to {}", short_number(report.loss.highest().value),
                                      short_number(report.loss.lowest().value));
  if (lines->width() < label.size() + end.size() + 10) return;
  lines->add(label +
             sparkline(losses, lines->width() - label.size() - end.size(), options.unicode) + end);
}

void add_alarms(const FollowedRun& run, Lines* lines) {
  constexpr size_t kMost = 5;
  size_t shown = 0;
  for (const Remark& remark : run.remarks()) {
    if (shown++ == kMost) {
      lines->add(fmt::format("and {} more; see tycho report", run.remarks().size() - kMost), "2");
      break;
    }
    std::string word = to_string(remark.severity);
    if (remark.severity == Severity::kAlarm) word = "ALARM";
    lines->add(fmt::format("{}{}: {}: {}", word,
                           remark.step < 0 ? "" : fmt::format(" (step {})", remark.step),
                           printable(remark.title), printable(remark.text)),
               code_of(remark.severity));
  }
}

void add_laws(const Report& report, Lines* lines) {
  std::map<Verdict, int> counts;
  for (const LawDescription& law : report.laws) ++counts[summary_verdict(report, law)];
  std::string tally;
  for (const Verdict verdict : {Verdict::kViolated, Verdict::kHolds, Verdict::kUnderpowered,
                                Verdict::kNotYet, Verdict::kNotMeasured, Verdict::kNotApplicable}) {
    if (counts[verdict] == 0) continue;
    tally += fmt::format("{}{} {}", tally.empty() ? "" : ", ", counts[verdict], to_string(verdict));
  }
  lines->title("Laws: " + tally);
  constexpr size_t kMost = 8;
  size_t shown = 0;
  std::vector<std::pair<std::string, Verdict>> said;
  for (const Finding& finding : report.findings) {
    const bool judged = finding.verdict == Verdict::kHolds || finding.verdict == Verdict::kViolated;
    // One scope stands for its peers: the most important comes first.
    const std::pair<std::string, Verdict> key{finding.law, finding.verdict};
    if (!judged || std::find(said.begin(), said.end(), key) != said.end()) continue;
    if (shown++ == kMost) break;
    said.push_back(key);
    const LawDescription* law = report.law(finding.law);
    lines->add_verdict(
        fmt::format("{} {} ", mark(finding.verdict), fit(law ? law->title : finding.law, 30)),
        finding.verdict,
        (finding.scope == "run" ? "" : printable(finding.scope) + ": ") + evidence(finding));
  }
}

struct Shown {
  const char* statistic;
  const char* title;
};

void add_layers(const Report& report, const ScreenOptions& options, size_t room, Lines* lines) {
  static constexpr Shown kCandidates[] = {
      {"grad_norm_sq", "gradient^2"},       {"activation_rms", "activation rms"},
      {"update_norm_sq", "update^2"},       {"weight_norm_sq", "weight^2"},
      {"angular_update", "angular update"}, {"dead_fraction", "dead units"}};
  const auto& recorded = report.series.recorded();
  std::vector<Shown> shown;
  const size_t most_columns = lines->width() >= 110 ? 3 : 2;
  for (const Shown& candidate : kCandidates) {
    const bool has = std::any_of(recorded.begin(), recorded.end(), [&](const auto& entry) {
      return entry.first.statistic == candidate.statistic && entry.first.scope == v1::SCOPE_LAYER;
    });
    if (has && shown.size() < most_columns) shown.push_back(candidate);
  }
  const auto layers = static_cast<size_t>(report.model.layer_size());
  if (shown.empty() || layers == 0 || room < 3) return;
  constexpr size_t kName = 16;
  constexpr size_t kNumber = 10;
  const size_t each = (lines->width() - std::min(lines->width(), kName)) / shown.size();
  if (each < kNumber + 6) return;
  const size_t spark = each - kNumber - 2;
  std::string title = fit("Layers", kName);
  for (const Shown& column : shown) title += " " + fit(column.title, each - 1);
  lines->title(title);
  const auto rows = rows_to_show(layers, room - 2);
  for (const size_t layer : rows) {
    std::string line = fit(printable(report.layer_label(static_cast<uint32_t>(layer))), kName);
    for (const Shown& column : shown) {
      const auto values = means(report.series.series({column.statistic, v1::SCOPE_LAYER}, layer));
      const double last = last_of(values);
      line += " " + sparkline(values, spark, options.unicode) + " " +
              fit(std::isnan(last) ? "" : short_number(last), kNumber);
    }
    lines->add(line);
  }
  if (rows.size() < layers)
    lines->add(fmt::format("{} of {} layers; tycho report has them all", rows.size(), layers), "2");
}

void add_changes(const std::deque<VerdictChange>& recent, size_t room, Lines* lines) {
  if (recent.empty() || room < 3) return;
  lines->title("Changes of verdicts, the newest last");
  const size_t count = std::min(recent.size(), room - 2);
  for (size_t i = recent.size() - count; i < recent.size(); ++i)
    lines->add(fmt::format("step {}: {}", recent[i].step, to_text(recent[i])));
}

}  // namespace

std::vector<size_t> rows_to_show(size_t layers, size_t most) {
  std::vector<size_t> rows;
  const size_t count = std::min(layers, most);
  for (size_t i = 0; i < count; ++i)
    rows.push_back(count == layers || count == 1 ? i : i * (layers - 1) / (count - 1));
  return rows;
}

std::string rate_text(double steps_per_second) {
  if (!std::isfinite(steps_per_second) || steps_per_second <= 0) return "";
  if (steps_per_second < 1) return fmt::format("{:.3g} s/step", 1 / steps_per_second);
  return fmt::format("{:.3g} steps/s", steps_per_second);
}

std::string span_text(double seconds) {
  if (seconds < 60) return fmt::format("{:.1f} s", seconds);
  if (seconds < 3600) return fmt::format("{:.0f} min", std::floor(seconds / 60));
  if (seconds < 48 * 3600) return fmt::format("{:.0f} h", std::floor(seconds / 3600));
  return fmt::format("{:.0f} d", std::floor(seconds / 86400));
}

std::string status_text(const FollowedRun& run, int64_t now_ns) {
  const Report& report = run.report();
  std::string text = to_string(run.state());
  if (run.state() == RunState::kDied) text = "the writer died";
  if (run.last_step() >= 0) text += fmt::format("  step {}", run.last_step());
  if (const std::string rate = rate_text(run.steps_per_second()); !rate.empty())
    text += "  " + rate;
  if (report.loss.observed() > 0)
    text +=
        "  loss " + (std::isnan(report.loss.last().value) ? std::string("nan")
                                                          : short_number(report.loss.last().value));
  const double training = report.health.training_seconds();
  if (training > 0)
    text += fmt::format("  Tycho {:.1f} %", 100 * report.health.tycho_seconds() / training);
  // Only a live run lags; a clock that was set back makes no lag.
  if (run.state() == RunState::kLive && run.last_time_ns() > 0) {
    const double lag =
        (static_cast<double>(now_ns) - static_cast<double>(run.last_time_ns())) * 1e-9;
    text += "  lag " + (lag >= 0 ? span_text(lag) : std::string("not known: clocks differ"));
  }
  return text;
}

std::vector<std::string> watch_screen(const FollowedRun& run,
                                      const std::deque<VerdictChange>& recent, int64_t now_ns,
                                      const ScreenOptions& options) {
  const Report& report = run.report();
  Lines lines(options);
  add_head(run, now_ns, &lines);
  add_alarms(run, &lines);
  if (report.frames > 0) {
    add_loss(report, options, &lines);
    add_laws(report, &lines);
    constexpr size_t kChanges = 8;  // with their title
    const auto room = [&](size_t kept) {
      if (options.height == 0) return size_t{1000};
      return options.height > lines.size() + kept ? options.height - lines.size() - kept : 0;
    };
    // An empty line and a hint at more layers come on top.
    const size_t for_changes = recent.empty() ? 0 : std::min(recent.size() + 2, kChanges);
    add_layers(report, options, room(for_changes + 1), &lines);
    add_changes(recent, room(0), &lines);
  }
  std::vector<std::string> all = lines.take();
  if (options.height > 0 && all.size() > options.height) all.resize(options.height);
  return all;
}

}  // namespace tycho::analyzer
