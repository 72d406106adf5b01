#include "bundle/identity_reader.h"

#include "text.h"

namespace arforge {

void IdentityReader::refuse(const std::string& place, const std::string& expected) const {
  throw Error(document.code, text(document.name, " does not follow the format: ", place, " must be ", expected));
}

const Json& IdentityReader::list(const Fields& fields, const char* name, std::size_t least, std::size_t most) const {
  const Json& found = fields.list(name, least);
  if (found.size() > most) {
    refuse(fields.place(name), text("a list of at most ", most));
  }
  return found;
}

std::optional<std::string> IdentityReader::optional(const Fields& fields, const char* name, std::size_t most,
                                                    std::size_t least) {
  const bool there = fields.has(name) && !fields.at(name).is_null();
  return there ? std::optional<std::string>(fields.string(name, most, least)) : std::nullopt;
}

// What is there for engines that make several calls by themselves. `sizes`: of a profile; `facts`: what else belongs
// to that kind.
void IdentityReader::check_between(const Fields& fields, const std::string& kind,
                                   std::initializer_list<const char*> sizes, const char* facts) const {
  const std::string graph = kind + "_graph";
  const std::string layers = kind + "_layers";
  const std::string reason = kind + "_reason";
  const std::string profiles = kind + "_profiles";
  for (const std::string& part : {std::string("own_mask"), graph, layers, reason, std::string(facts), profiles}) {
    if (fields.has(kind.c_str()) && !fields.has(part.c_str())) {
      refuse(fields.place(kind.c_str()), text("there with ", part));
    }
  }
  for (const std::string& path : {kind, graph, layers}) {
    (void)optional(fields, path.c_str());
  }
  (void)optional(fields, reason.c_str(), MAX_REASON_LETTERS, 0);
  if (fields.has(profiles.c_str())) {
    for (const Json& entry : list(fields, profiles.c_str(), 0, MAX_ENTRIES)) {
      check_counts(Fields(entry, fields.place(profiles.c_str()), sizes, document), sizes);
    }
  }
}

void IdentityReader::check_counts(const Fields& fields, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    (void)fields.whole(name, std::string(name) == "queries" ? 0 : 1);
  }
}

std::optional<LoopIdentity> IdentityReader::loop(const Fields& fields) const {
  const std::initializer_list<const char*> of_profile = {"images", "fed", "width"};
  check_between(fields, "loop", of_profile, "loop_inputs");
  LoopIdentity found{{}, fields.has("loop_inputs") ? fields.whole("loop_inputs", 0) : 0, {}};
  const std::optional<std::string> engine = optional(fields, "loop");
  if (!engine) {
    return std::nullopt;
  }
  found.engine = *engine;
  for (const Json& entry : list(fields, "loop_profiles", 0, MAX_ENTRIES)) {
    const Fields one(entry, fields.place("loop_profiles"), of_profile, document);
    found.profiles.push_back({one.whole("images"), one.whole("fed"), one.whole("width")});
  }
  return found;
}

std::optional<TableIdentity> IdentityReader::table(const Fields& fields) const {
  const std::initializer_list<const char*> of_profile = {"images", "width", "queries"};
  check_between(fields, "table", of_profile, "table_sizes");
  std::optional<TableSizes> sizes;
  if (fields.has("table_sizes") && !fields.at("table_sizes").is_null()) {
    const Fields one(fields.at("table_sizes"), fields.place("table_sizes"),
                     {"calls", "inputs", "outputs", "most", "columns"}, document);
    sizes = {one.whole("calls"), one.whole("inputs"), one.whole("outputs"), one.whole("most"), one.whole("columns")};
  }
  const std::optional<std::string> engine = optional(fields, "table");
  if (!engine) {
    return std::nullopt;
  }
  if (!sizes) {
    refuse(fields.place("table_sizes"), "sizes, where there is a table");
  }
  TableIdentity found{*engine, *sizes, {}};
  for (const Json& entry : list(fields, "table_profiles", 0, MAX_ENTRIES)) {
    const Fields one(entry, fields.place("table_profiles"), of_profile, document);
    found.profiles.push_back({one.whole("images"), one.whole("width"), one.whole("queries", 0)});
  }
  return found;
}

} // namespace arforge
