#include "src/engine/run_ids.h"

#include <algorithm>
#include <utility>

namespace tycho::analyzer {
namespace {

/// Statistic ids come from a file: a table indexed by them must not be as large as a hostile id.
constexpr uint32_t kLargestStatisticId = 1u << 16;
/// v1::Scope has values below this.
constexpr size_t kScopes = 5;

/// Finds or appends `name`; returns its index. `index_of` is the index of what is there already.
uint32_t intern(std::map<std::string, uint32_t>& index_of, const std::string& name, bool& added) {
  const auto [found, inserted] = index_of.try_emplace(name, static_cast<uint32_t>(index_of.size()));
  added = inserted;
  return found->second;
}

bool is_identity(const std::vector<uint32_t>& table) {
  for (size_t i = 0; i < table.size(); ++i) {
    if (table[i] != i) return false;
  }
  return true;
}

}  // namespace

void RunIds::merge_model(const v1::ModelDescription& model, KnownRun* run) {
  v1::ModelDescription& known = run->mutable_model();
  layer_of_.assign(static_cast<size_t>(model.layer_size()), kNoEntity);
  parameter_of_.assign(static_cast<size_t>(model.parameter_size()), kNoEntity);
  bool added = false;
  for (int i = 0; i < model.layer_size(); ++i) {
    const uint32_t id = intern(layer_index_, model.layer(i).path(), added);
    layer_of_[static_cast<size_t>(i)] = id;
    if (added) known.add_layer();
  }
  for (int i = 0; i < model.parameter_size(); ++i) {
    const uint32_t id = intern(parameter_index_, model.parameter(i).name(), added);
    parameter_of_[static_cast<size_t>(i)] = id;
    if (added) known.add_parameter();
  }
  // What the newest segment says about a layer or parameter is what it is now.
  for (int i = 0; i < model.layer_size(); ++i) {
    v1::Layer layer = model.layer(i);
    const uint32_t id = layer_of_[static_cast<size_t>(i)];
    layer.set_id(id);
    layer.clear_parameter();
    for (const uint32_t of_segment : model.layer(i).parameter()) {
      const uint32_t mapped = parameter(of_segment);
      if (mapped != kNoEntity) layer.add_parameter(mapped);
    }
    *known.mutable_layer(static_cast<int>(id)) = std::move(layer);
  }
  for (int i = 0; i < model.parameter_size(); ++i) {
    v1::Parameter parameter = model.parameter(i);
    const uint32_t id = parameter_of_[static_cast<size_t>(i)];
    parameter.set_id(id);
    const uint32_t owner = layer(parameter.layer());
    parameter.set_layer(owner == kNoEntity ? 0 : owner);
    *known.mutable_parameter(static_cast<int>(id)) = std::move(parameter);
  }
  layers_identical_ = is_identity(layer_of_);
  parameters_identical_ = is_identity(parameter_of_);
}

void RunIds::merge_registry(const v1::StatisticRegistry& registry, bool continues, KnownRun* run) {
  column_of_.clear();
  other_reference_.clear();
  for (const v1::StatisticDefinition& definition : registry.statistic()) {
    if (definition.id() > kLargestStatisticId) continue;
    bool added = false;
    const uint32_t id = intern(statistic_index_, definition.name(), added);
    if (added) {
      *run->mutable_registry().add_statistic() = definition;
      run->mutable_registry().mutable_statistic(static_cast<int>(id))->set_id(id);
    } else {
      v1::StatisticDefinition* known =
          run->mutable_registry().mutable_statistic(static_cast<int>(id));
      for (const int scope : definition.scope()) {
        const auto& scopes = known->scope();
        if (std::find(scopes.begin(), scopes.end(), scope) == scopes.end()) {
          known->add_scope(static_cast<v1::Scope>(scope));
        }
      }
    }
    const size_t slot = definition.id();
    if (column_of_.size() <= slot * kScopes) column_of_.resize((slot + 1) * kScopes, kNoColumn);
    bool measured_before = false;
    for (const v1::Scope scope :
         {v1::SCOPE_RUN, v1::SCOPE_LAYER, v1::SCOPE_PARAMETER, v1::SCOPE_INDEX}) {
      const ColumnIndex column = run->column(definition.name(), scope);
      column_of_[slot * kScopes + static_cast<size_t>(scope)] = column;
      if (column == kNoColumn) continue;
      measured_before |= run->stored(column).value_frame > 0;
    }
    if (other_reference_.size() <= slot) other_reference_.resize(slot + 1);
    other_reference_[slot] = continues && definition.since_first_observation() && measured_before;
  }
}

ColumnIndex RunIds::column(uint32_t statistic, v1::Scope scope) const {
  const size_t position = static_cast<size_t>(statistic) * kScopes + static_cast<size_t>(scope);
  return position < column_of_.size() ? column_of_[position] : kNoColumn;
}

v1::OptimizerSettings RunIds::translated(const v1::OptimizerSettings& settings) const {
  v1::OptimizerSettings result = settings;
  if (parameters_identical_) return result;
  for (int g = 0; g < result.group_size(); ++g) {
    v1::ParameterGroup* group = result.mutable_group(g);
    group->clear_parameter();
    for (const uint32_t of_segment : settings.group(g).parameter()) {
      const uint32_t mapped = parameter(of_segment);
      if (mapped != kNoEntity) group->add_parameter(mapped);
    }
  }
  return result;
}

v1::Event RunIds::translated(const v1::Event& event) const {
  v1::Event result = event;
  if (event.scope() == v1::SCOPE_LAYER) {
    result.set_entity(layer(event.entity()));
  } else if (event.scope() == v1::SCOPE_PARAMETER) {
    result.set_entity(parameter(event.entity()));
  }
  return result;
}

v1::ModelStructure RunIds::translated(const v1::ModelStructure& structure) const {
  v1::ModelStructure result;
  for (const v1::SymmetryGroup& group : structure.symmetry_group()) {
    v1::SymmetryGroup* copy = result.add_symmetry_group();
    *copy = group;
    copy->clear_parameter();
    for (const uint32_t of_segment : group.parameter()) {
      const uint32_t mapped = parameter(of_segment);
      if (mapped != kNoEntity) copy->add_parameter(mapped);
    }
  }
  for (const v1::LayerEdge& edge : structure.edge()) {
    const uint32_t from = layer(edge.from());
    const uint32_t to = layer(edge.to());
    if (from == kNoEntity || to == kNoEntity) continue;
    v1::LayerEdge* copy = result.add_edge();
    *copy = edge;
    copy->set_from(from);
    copy->set_to(to);
  }
  for (const v1::LayerFact& fact : structure.fact()) {
    const uint32_t of_run = layer(fact.layer());
    if (of_run == kNoEntity) continue;
    v1::LayerFact* copy = result.add_fact();
    *copy = fact;
    copy->set_layer(of_run);
  }
  return result;
}

}  // namespace tycho::analyzer
