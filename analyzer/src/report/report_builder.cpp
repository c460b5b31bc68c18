#include "report_builder.h"

#include <cmath>

namespace tycho::analyzer {

void SpectrumKeeper::observe(const RunContext& context, const Frame& frame, Spectrum* spectrum) {
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

ReportBuilder::ReportBuilder(const std::string& path, bool keep_series)
    : keep_series_(keep_series) {
  report_.path = path;
  for (const auto& law : make_laws()) report_.laws.push_back(law->description());
  engine_.add_consumer([this](const RunContext& context, const Frame& frame) {
    if (keep_series_) report_.series.observe(context, frame);
    report_.loss.observe(context, frame);
    if (frame.optimizer() != nullptr && frame.optimizer_version() != settings_version_) {
      report_.settings = *frame.optimizer();
      settings_version_ = frame.optimizer_version();
    }
    spectrum_.observe(context, frame, &report_.spectrum);
  });
}

void ReportBuilder::drop_series() {
  keep_series_ = false;
  report_.series = SeriesStore();
}

void ReportBuilder::update(const v1::RunDescription& run, const v1::ModelDescription& model,
                           const v1::StatisticRegistry& registry,
                           std::vector<trace::SegmentInfo> segments,
                           std::vector<trace::SkippedRegion> skipped) {
  report_.series.finish();
  report_.run = run;
  report_.model = model;
  report_.registry = registry;
  report_.segments = std::move(segments);
  report_.skipped = std::move(skipped);
  report_.findings = engine_.findings();
  report_.events = engine_.events();
  report_.other_reference = engine_.ignored().other_reference;
  report_.health = engine_.health();
  report_.first_step = engine_.first_step();
  report_.last_step = engine_.last_step();
  report_.frames = engine_.frames();
  report_.bytes = 0;
  for (const auto& segment : report_.segments) report_.bytes += segment.bytes;
}

}  // namespace tycho::analyzer
