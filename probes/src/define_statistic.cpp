#include <utility>

#include "tycho/probe.h"

namespace tycho {

v1::StatisticDefinition define_statistic(std::string name, std::string symbol, std::string unit,
                                         std::vector<v1::Scope> scopes, std::string definition,
                                         std::string source) {
  v1::StatisticDefinition result;
  result.set_name(std::move(name));
  result.set_symbol(std::move(symbol));
  result.set_unit(std::move(unit));
  result.set_definition(std::move(definition));
  result.set_source(std::move(source));
  for (const v1::Scope scope : scopes) result.add_scope(scope);
  return result;
}

v1::StatisticDefinition since_first_observation(v1::StatisticDefinition definition) {
  definition.set_since_first_observation(true);
  return definition;
}

}  // namespace tycho
