#include "report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "remarks.h"

namespace tycho::analyzer {

const LawDescription* Report::law(const std::string& id) const {
  const auto found = std::find_if(laws.begin(), laws.end(),
                                  [&](const LawDescription& law) { return law.id == id; });
  return found == laws.end() ? nullptr : &*found;
}

std::string Report::layer_path(uint32_t id) const {
  if (id >= static_cast<uint32_t>(model.layer_size())) return fmt::format("layer {}", id);
  const std::string& path = model.layer(static_cast<int>(id)).path();
  return path.empty() ? "(root)" : path;
}

namespace {

class SpectrumKeeper {
 public:
  void observe(const RunContext& context, const Frame& frame, Spectrum* spectrum) {
    if (node_ == kNoColumn) {
      node_ = context.column("spectral_density_node", v1::SCOPE_INDEX);
      weight_ = context.column("spectral_density_weight", v1::SCOPE_INDEX);
    }
    const ColumnValues node = frame.column(node_);
    const ColumnValues weight = frame.column(weight_);
    if (!node.present || !weight.present) return;
    spectrum->step = frame.step();
    spectrum->node.clear();
    spectrum->weight.clear();
    for (size_t i = 0; i < node.size; ++i) {
      if (!std::isfinite(node[i]) || !std::isfinite(weight[i]) || weight[i] < 0) continue;
      spectrum->node.push_back(node[i]);
      spectrum->weight.push_back(weight[i]);
    }
  }

 private:
  ColumnIndex node_ = kNoColumn;
  ColumnIndex weight_ = kNoColumn;
};

}  // namespace

Result<Report> read_report(const std::string& path,
                           const std::function<void(uint64_t frames)>& progress) {
  auto reader = trace::RunReader::open(path);
  if (!reader.ok()) return reader.status();
  Report report;
  report.path = path;
  Engine engine;
  SpectrumKeeper spectrum;
  engine.add_consumer([&](const RunContext& context, const Frame& frame) {
    report.series.observe(context, frame);
    report.loss.observe(context, frame);
    spectrum.observe(context, frame, &report.spectrum);
    if (progress && ++report.frames % 1000 == 0) progress(report.frames);
  });
  if (Status status = reader.value()->read(engine); !status.ok()) return status;
  engine.finish();
  report.series.finish();
  report.run = reader.value()->run();
  report.model = reader.value()->model();
  report.registry = reader.value()->registry();
  report.segments = reader.value()->segments();
  report.skipped = reader.value()->skipped();
  for (const auto& law : make_laws()) report.laws.push_back(law->description());
  report.findings = engine.findings();
  report.events = engine.events();
  report.other_reference = engine.ignored().other_reference;
  report.health = engine.health();
  report.first_step = engine.first_step();
  report.last_step = engine.last_step();
  report.frames = engine.frames();
  for (const auto& segment : report.segments) report.bytes += segment.bytes;
  return report;
}

std::vector<const Finding*> what_to_do(const Report& report) {
  constexpr size_t kMost = 6;
  constexpr double kWorthIt = 0.3;
  std::vector<const Finding*> chosen;
  if (is_broken(remarks(report))) return chosen;
  for (const Finding& finding : report.findings) {
    const bool speaks = finding.verdict == Verdict::kHolds || finding.verdict == Verdict::kViolated;
    // An estimate with its interval may be worth acting upon though the law could not be tested, or
    // has nothing to say yet.
    const bool estimates =
        (finding.verdict == Verdict::kUnderpowered || finding.verdict == Verdict::kNotYet) &&
        std::isfinite(finding.ci_low);
    if ((!speaks && !estimates) || finding.advice.empty() || finding.importance < kWorthIt)
      continue;
    // One scope of a law stands for its peers: the most important comes first.
    const bool said = std::any_of(chosen.begin(), chosen.end(), [&](const Finding* other) {
      return other->law == finding.law && other->verdict == finding.verdict;
    });
    if (!said) chosen.push_back(&finding);
    if (chosen.size() == kMost) break;
  }
  return chosen;
}

std::string short_number(double value) {
  if (std::isnan(value)) return "not known";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return fmt::format("{:.4g}", value);
}

bool shows_numbers(const Finding& finding) { return finding.verdict != Verdict::kNotApplicable; }

std::string evidence(const Finding& finding) {
  if (std::isnan(finding.measured) || !shows_numbers(finding)) return "";
  std::string text = "measured " + short_number(finding.measured);
  if (!std::isnan(finding.ci_low) && !std::isnan(finding.ci_high)) {
    text += fmt::format(" [{}, {}]", short_number(finding.ci_low), short_number(finding.ci_high));
  }
  if (!finding.unit.empty() && finding.unit != "1") text += " " + finding.unit;
  if (!std::isnan(finding.predicted)) {
    text += finding.relation == Relation::kEqual
                ? ", predicted "
                : fmt::format(", predicted {} ", to_string(finding.relation));
    text += short_number(finding.predicted);
  }
  return text;
}

}  // namespace tycho::analyzer
