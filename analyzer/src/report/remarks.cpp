#include "remarks.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace tycho::analyzer {
namespace {

constexpr double kManyDead = 0.3;

std::string entity_name(const Report& report, v1::Scope scope, uint32_t entity) {
  if (scope == v1::SCOPE_LAYER) return report.layer_path(entity);
  if (scope == v1::SCOPE_PARAMETER && entity < static_cast<uint32_t>(report.model.parameter_size()))
    return report.model.parameter(static_cast<int>(entity)).name();
  return "the run";
}

void non_finite(const Report& report, std::vector<Remark>* result) {
  const v1::Event* first = nullptr;
  for (const v1::Event& event : report.events) {
    if (event.kind() != v1::Event::NON_FINITE) continue;
    if (first == nullptr || event.step() < first->step()) first = &event;
  }
  if (first == nullptr) return;
  Remark remark;
  remark.title = "Numbers that are not finite";
  remark.text = fmt::format(
      "First at step {}, in {}: {}. What is computed from them afterwards means nothing: lower the "
      "learning rate, clip gradients, or look at what this layer was given.",
      first->step(), entity_name(report, first->scope(), first->entity()),
      first->message().empty() ? first->code() : first->message());
  result->push_back(std::move(remark));
}

void dead_units(const Report& report, std::vector<Remark>* result) {
  const SeriesStore::Key key{"dead_fraction", v1::SCOPE_LAYER};
  double worst = kManyDead;
  uint32_t layer = 0;
  int layers = 0;
  for (int i = 0; i < report.model.layer_size(); ++i) {
    const auto buckets = report.series.series(key, static_cast<size_t>(i));
    double sum = 0;
    uint32_t count = 0;
    for (size_t b = buckets.size() * 3 / 4; b < buckets.size(); ++b) {
      sum += buckets[b].sum;
      count += buckets[b].count;
    }
    if (count == 0 || sum / count <= kManyDead) continue;
    ++layers;
    if (sum / count < worst) continue;
    worst = sum / count;
    layer = static_cast<uint32_t>(i);
  }
  if (layers == 0) return;
  Remark remark;
  remark.title = "Dead units";
  remark.statistic = "dead_fraction";
  remark.scope = "layer:" + report.model.layer(static_cast<int>(layer)).path();
  remark.text = fmt::format(
      "{:.0f} % of the units of {} were never above zero in a step towards the end{}. They learn "
      "nothing: a lower learning rate, a warm-up or a leaky activation keeps them alive.",
      100 * worst, report.layer_path(layer),
      layers > 1 ? fmt::format(", and {} other layers have as many as {:.0f} %", layers - 1,
                               100 * kManyDead)
                 : "");
  result->push_back(std::move(remark));
}

void losses(const Report& report, std::vector<Remark>* result) {
  if (!report.has_loss()) return;
  uint64_t bytes = 0;
  for (const auto& region : report.skipped) bytes += region.end - region.begin;
  Remark remark;
  remark.title = "The trace is not complete";
  remark.text = fmt::format(
      "{} bytes could not be read and {} messages were dropped while it was written; everything "
      "else was used. See what was lost, below.",
      bytes, report.health.messages_dropped());
  result->push_back(std::move(remark));
}

}  // namespace

std::vector<Remark> remarks(const Report& report) {
  std::vector<Remark> result;
  non_finite(report, &result);
  dead_units(report, &result);
  losses(report, &result);
  return result;
}

std::string nothing_to_do(const Report& report) {
  if (report.frames == 0) return "No step was observed: nothing can be said.";
  return fmt::format(
      "Nothing asks for a change: in {} observed steps no law was violated, every number that was "
      "looked at was finite, and nothing was lost.",
      report.frames);
}

Verdict summary_verdict(const Report& report, const LawDescription& law) {
  std::map<Verdict, int> counts;
  const Finding* run = nullptr;
  for (const Finding& finding : report.findings) {
    if (finding.law != law.id) continue;
    ++counts[finding.verdict];
    if (finding.scope == "run") run = &finding;
  }
  if (run != nullptr) return run->verdict;
  if (counts.empty()) return Verdict::kNotApplicable;
  if (counts.count(Verdict::kViolated) > 0) return Verdict::kViolated;
  if (counts.count(Verdict::kHolds) > 0) return Verdict::kHolds;
  return std::max_element(counts.begin(), counts.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

std::vector<std::string> what_is_missing(const Report& report) {
  std::vector<std::string> result;
  for (const LawDescription& law : report.laws) {
    const Verdict verdict = summary_verdict(report, law);
    if (verdict != Verdict::kNotYet && verdict != Verdict::kUnderpowered) continue;
    for (const Finding& finding : report.findings) {
      if (finding.law != law.id || finding.verdict != verdict || finding.gate.empty()) continue;
      result.push_back(fmt::format("{}: {}.", law.title, finding.gate));
      break;
    }
  }
  if (report.other_reference > 0) {
    result.push_back(
        fmt::format("Resumed: {} records of changes since the first observation are relative to "
                    "where the run was taken up, not to its start, and were not used.",
                    report.other_reference));
  }
  return result;
}

}  // namespace tycho::analyzer
