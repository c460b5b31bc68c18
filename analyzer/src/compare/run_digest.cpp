#include "src/compare/run_digest.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "src/forwarding_handler.h"
#include "src/statistics/noise_scale_series.h"

namespace tycho::analyzer {
namespace {

void average_in(double value, double count, double* mean) {
  *mean = count <= 1 ? value : *mean + (value - *mean) / count;
}

void average_in(const Position& position, double count, Position* mean) {
  average_in(position.step, count, &mean->step);
  average_in(position.examples, count, &mean->examples);
  average_in(position.seconds, count, &mean->seconds);
}

/// The bin `index`, made where it is not there yet. A resumed run goes back, so the last one is the
/// usual place and not the only one.
template <typename Bin>
Bin& bin_at(std::vector<Bin>& bins, size_t index) {
  if (!bins.empty() && bins.back().bin == index) return bins.back();
  auto place = std::lower_bound(bins.begin(), bins.end(), index,
                                [](const Bin& bin, size_t at) { return bin.bin < at; });
  if (place == bins.end() || place->bin != index) {
    place = bins.insert(place, Bin());
    place->bin = index;
  }
  return *place;
}

double median_of(std::vector<double> values) {
  if (values.empty()) return kUnknown;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

const char* to_string(Alignment by) {
  switch (by) {
    case Alignment::kStep:
      return "step";
    case Alignment::kExamples:
      return "examples";
    case Alignment::kTime:
      return "time";
  }
  return "";
}

const std::vector<RunBin>* RunDigest::series(const std::string& statistic) const {
  const auto found = run_series.find(statistic);
  return found == run_series.end() ? nullptr : &found->second;
}

const std::vector<LayerBin>* RunDigest::layers(const std::string& statistic) const {
  const auto found = layer_series.find(statistic);
  return found == layer_series.end() ? nullptr : &found->second;
}

int RunDigest::layer_id(const std::string& layer_path) const {
  for (int i = 0; i < model.layer_size(); ++i) {
    if (model.layer(i).path() == layer_path) return i;
  }
  return -1;
}

struct DigestBuilder::Impl {
  struct Column {
    ColumnIndex index = kNoColumn;
    v1::Scope scope = v1::SCOPE_RUN;
    std::vector<RunBin>* run = nullptr;  // in the digest: maps do not move their values
    std::vector<LayerBin>* layers = nullptr;
    std::string statistic;
  };

  void prepare(const RunContext& context);
  Position advance(const Frame& frame);
  void observe(const RunContext& context, const Frame& frame);

  Engine* engine = nullptr;
  RunDigest digest;
  std::vector<Column> columns;
  int statistics = -1;
  ColumnIndex batch_size = kNoColumn;
  ColumnIndex learning_rate = kNoColumn;
  NoiseColumns noise_columns;
  NoiseScaleSeries noise;
  uint64_t optimizer_version = 0;
  bool any = false;
  double last_step = 0;
  double last_batch = kUnknown;
  double examples = 0;
  bool timed = false;   // a message came
  bool paused = false;  // the time until the next message does not count
  int64_t last_time_ns = 0;
  double seconds = 0;
  bool time_moves = false;
  std::function<void(uint64_t)> progress;
};

void DigestBuilder::Impl::prepare(const RunContext& context) {
  if (statistics == context.registry().statistic_size()) return;
  for (int i = std::max(statistics, 0); i < context.registry().statistic_size(); ++i) {
    const std::string& name = context.registry().statistic(i).name();
    for (const v1::Scope scope : {v1::SCOPE_RUN, v1::SCOPE_LAYER}) {
      Column column;
      column.index = context.column(name, scope);
      column.scope = scope;
      column.statistic = name;
      columns.push_back(std::move(column));
    }
  }
  statistics = context.registry().statistic_size();
  batch_size = context.column("batch_size", v1::SCOPE_RUN);
  learning_rate = context.column("learning_rate", v1::SCOPE_RUN);
  noise_columns = NoiseColumns::of(context, v1::SCOPE_RUN);
}

Position DigestBuilder::Impl::advance(const Frame& frame) {
  const double step = static_cast<double>(frame.step());
  const double batch = frame.column(batch_size)[0];
  if (std::isfinite(batch) && batch > 0) last_batch = batch;
  if (std::isfinite(last_batch)) {
    // Before the first frame, steps from 0 on; a resumed run goes back, and its examples with it.
    const double passed = any ? step - last_step : step + 1;
    examples += last_batch * passed;
  }
  any = true;
  last_step = step;
  Position position;
  position.step = step;
  if (std::isfinite(last_batch)) position.examples = examples;
  position.seconds = seconds;
  return position;
}

void DigestBuilder::Impl::observe(const RunContext& context, const Frame& frame) {
  prepare(context);
  const Position position = advance(frame);
  digest.end = position;
  digest.frames += frame.is_after_step() ? 0 : 1;
  noise.observe(frame, noise_columns, 0);
  if (progress && digest.frames % 1000 == 0) progress(digest.frames);
  double rate = frame.column(learning_rate)[0];
  if (frame.optimizer() != nullptr && frame.optimizer_version() != optimizer_version) {
    optimizer_version = frame.optimizer_version();
    if (digest.optimizer.group_size() == 0) {
      digest.optimizer = *frame.optimizer();
    } else {
      ++digest.optimizer_changes;
    }
    if (!std::isfinite(rate) && frame.optimizer()->group_size() > 0) {
      rate = frame.optimizer()->group(0).learning_rate();
    }
  }
  if (std::isfinite(rate) && !(rate <= digest.peak_learning_rate)) {
    digest.peak_learning_rate = rate;
  }
  for (Column& column : columns) {
    const ColumnValues values = frame.column(column.index);
    if (!values.present) continue;
    if (column.scope == v1::SCOPE_RUN) {
      const double value = values[0];
      if (!is_measured(value)) continue;
      if (column.run == nullptr) column.run = &digest.run_series[column.statistic];
      RunBin& bin = bin_at(*column.run, kFineGrid.bin(frame.step()));
      average_in(position, static_cast<double>(bin.count + bin.non_finite + 1), &bin.position);
      if (!std::isfinite(value)) {
        ++bin.non_finite;
        continue;
      }
      bin.min = bin.count == 0 ? value : std::min(bin.min, value);
      bin.max = bin.count == 0 ? value : std::max(bin.max, value);
      ++bin.count;
      const double before = value - bin.mean;
      average_in(value, static_cast<double>(bin.count), &bin.mean);
      if (bin.count > 1) bin.square += before * (value - bin.mean);
      continue;
    }
    if (column.layers == nullptr) column.layers = &digest.layer_series[column.statistic];
    LayerBin& bin = bin_at(*column.layers, kCoarseGrid.bin(frame.step()));
    if (bin.observations == 0) bin.first_step = frame.step();
    ++bin.observations;
    average_in(position, static_cast<double>(bin.observations), &bin.position);
    if (bin.cell.size() < values.size) bin.cell.resize(values.size);
    for (size_t i = 0; i < values.size; ++i) {
      const double value = values.value[i];
      if (!std::isfinite(value)) continue;
      LayerCell& cell = bin.cell[i];
      if (bin.first_step == frame.step()) cell.first = value;
      cell.sum += value;
      ++cell.count;
    }
  }
}

DigestBuilder::DigestBuilder(Engine* engine) : impl_(std::make_unique<Impl>()) {
  impl_->engine = engine;
  engine->add_consumer([impl = impl_.get()](const RunContext& context, const Frame& frame) {
    impl->observe(context, frame);
  });
}

DigestBuilder::~DigestBuilder() = default;

void DigestBuilder::set_time(int64_t time_ns) {
  Impl& impl = *impl_;
  if (impl.timed && !impl.paused && time_ns > impl.last_time_ns) {
    impl.seconds += 1e-9 * (static_cast<double>(time_ns) - static_cast<double>(impl.last_time_ns));
    impl.time_moves = true;
  }
  impl.timed = true;
  impl.paused = false;
  impl.last_time_ns = time_ns;
}

void DigestBuilder::pause() { impl_->paused = true; }

void DigestBuilder::set_progress(std::function<void(uint64_t frames)> progress) {
  impl_->progress = std::move(progress);
}

RunDigest DigestBuilder::take() {
  RunDigest digest = std::move(impl_->digest);
  impl_->digest = RunDigest();
  const Engine& engine = *impl_->engine;
  digest.run = engine.context().run();
  digest.model = engine.context().model();
  digest.registry = engine.context().registry();
  digest.first_step = engine.first_step();
  digest.last_step = engine.last_step();
  digest.messages_dropped = engine.health().messages_dropped();
  digest.events = engine.events();
  digest.name = digest.run.run_name();
  digest.noise_scale = impl_->noise.now();
  if (!impl_->time_moves) {
    digest.end.seconds = kUnknown;
    for (auto& [statistic, bins] : digest.run_series) {
      for (RunBin& bin : bins) bin.position.seconds = kUnknown;
    }
    for (auto& [statistic, bins] : digest.layer_series) {
      for (LayerBin& bin : bins) bin.position.seconds = kUnknown;
    }
  }
  if (const auto* batches = digest.series("batch_size")) {
    std::vector<double> sizes;
    for (const RunBin& bin : *batches) {
      if (bin.count > 0) sizes.push_back(bin.mean);
    }
    digest.batch_size = median_of(std::move(sizes));
  }
  return digest;
}

namespace {

/// Passes messages on to an engine and tells the builder their time.
class Timekeeper : public ForwardingHandler {
 public:
  Timekeeper(Engine* engine, DigestBuilder* builder)
      : ForwardingHandler(engine), builder_(builder) {}
  bool on_segment(const trace::SegmentInfo& info, const v1::RunDescription& run,
                  const v1::ModelDescription& model,
                  const v1::StatisticRegistry& registry) override {
    if (info.resumed || run.resumed()) builder_->pause();
    return ForwardingHandler::on_segment(info, run, model, registry);
  }
  bool on_record(const std::string& probe, const v1::Record& record, int64_t time_ns) override {
    // The frame before is completed by this record: it must not see its time.
    const bool more = ForwardingHandler::on_record(probe, record, time_ns);
    builder_->set_time(time_ns);
    return more;
  }

 private:
  DigestBuilder* builder_;
};

}  // namespace

Result<RunDigest> digest_run(const std::string& path,
                             const std::function<void(uint64_t frames)>& progress) {
  auto reader = trace::RunReader::open(path);
  if (!reader.ok()) return reader.status();
  Engine engine{std::vector<std::unique_ptr<Law>>()};
  DigestBuilder builder(&engine);
  builder.set_progress(progress);
  Timekeeper timekeeper(&engine, &builder);
  if (Status status = reader.value()->read(timekeeper); !status.ok()) return status;
  engine.finish();
  RunDigest digest = builder.take();
  digest.path = path;
  if (digest.name.empty()) digest.name = path;
  digest.run = reader.value()->run();
  const auto& segments = reader.value()->segments();
  for (const trace::SegmentInfo& segment : segments) {
    digest.being_written = digest.being_written || segment.being_written;
    digest.died = digest.died || segment.at_risk_seconds > 0;
  }
  digest.losses = trace::losses(segments, reader.value()->skipped());
  for (const auto& region : reader.value()->skipped()) {
    digest.bytes_lost += region.end - region.begin;
  }
  return digest;
}

}  // namespace tycho::analyzer
