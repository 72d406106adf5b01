#include "bundle/json.h"

#include <algorithm>
#include <set>
#include <vector>

#include "text.h"

namespace arforge {
namespace {

[[noreturn]] void refused(const Document& document, const std::string& place, const std::string& expected) {
  throw Error(document.code, text(document.name, " does not follow the format: ", place, " must be ", expected));
}

std::size_t letters(const std::string& utf8) {
  return static_cast<std::size_t>(std::count_if(
      utf8.begin(), utf8.end(), [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }));
}

} // namespace

Json parse_json(const std::string& content, const std::string& name, Code code) {
  const auto refuse = [&](const std::string& problem) {
    throw Error(code, text(name, " is not valid JSON: ", problem));
  };
  std::vector<std::set<std::string>> keys; // of the open objects, by depth
  const auto look = [&](int depth, Json::parse_event_t event, const Json& value) {
    const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth > MAX_DEPTH) {
      throw Error(code, text(name, " is nested more than ", MAX_DEPTH, " levels deep"));
    }
    keys.resize(std::max<std::size_t>(keys.size(), static_cast<std::size_t>(depth) + 2));
    if (event == Json::parse_event_t::object_start) {
      keys[static_cast<std::size_t>(depth) + 1].clear();
    }
    if (event == Json::parse_event_t::key && !keys[static_cast<std::size_t>(depth)].insert(value).second) {
      refuse(text("'", value.get<std::string>(), "' is given twice"));
    }
    return true;
  };
  try {
    if (content.rfind("\xEF\xBB\xBF", 0) == 0) {
      refuse("it starts with a byte order mark");
    }
    return Json::parse(content, look);
  } catch (const Json::parse_error& error) { // its message may quote bytes that are no text
    refuse(text("wrong at byte ", error.byte));
  } catch (const Json::exception&) {
    refuse("it holds a number that is too large");
  }
  return {};
}

std::int64_t whole_number(const Json& value, const std::string& place, std::int64_t least, std::int64_t most,
                          const Document& document) {
  const bool small = !value.is_number_unsigned() || value.get<std::uint64_t>() <= INT64_MAX;
  if (!value.is_number_integer() || !small || value.get<std::int64_t>() < least || value.get<std::int64_t>() > most) {
    refused(document, place, text("a whole number, without a point, from ", least, " to ", most));
  }
  return value.get<std::int64_t>();
}

Fields::Fields(const Json& object, std::string place, std::initializer_list<const char*> names,
               const Document& document, std::initializer_list<const char*> optional)
    : object_(object), place_(std::move(place)), document_(document) {
  if (!object.is_object()) {
    refused(document_, place_, "an object");
  }
  for (const char* name : names) {
    if (!object.contains(name)) {
      refused(document_, place_, text("an object with the field ", name));
    }
  }
  const auto more = std::count_if(optional.begin(), optional.end(), [&](const char* name) { return has(name); });
  if (object.size() != names.size() + static_cast<std::size_t>(more)) {
    const char* comma = optional.size() > 0 ? ", " : "";
    refused(document_, place_, text("an object with no field but ", listed(names), comma, listed(optional, "")));
  }
}

void Fields::refuse(const char* name, const std::string& expected) const { refused(document_, place(name), expected); }

std::int64_t Fields::whole(const char* name, std::int64_t least, std::int64_t most) const {
  return whole_number(at(name), place(name), least, most, document_);
}

double Fields::number(const char* name, double least, double most) const {
  const Json& value = at(name);
  if (!value.is_number() || !(value.get<double>() >= least && value.get<double>() <= most)) {
    refuse(name, text("a number from ", least, " to ", most));
  }
  return value.get<double>();
}

std::string Fields::string(const char* name, std::size_t most, std::size_t least) const {
  const Json& value = at(name);
  const auto* found = value.get_ptr<const std::string*>();
  if (found == nullptr || letters(*found) < least || letters(*found) > most) {
    refuse(name, text("a string of ", least, " to ", most, " letters"));
  }
  return *found;
}

std::string Fields::one_of(const char* name, std::initializer_list<const char*> words) const {
  const Json& value = at(name);
  for (const char* word : words) {
    if (value == word) {
      return word;
    }
  }
  refuse(name, text("one of ", listed(words)));
}

bool Fields::boolean(const char* name) const {
  if (!at(name).is_boolean()) {
    refuse(name, "true or false");
  }
  return at(name).get<bool>();
}

const Json& Fields::object(const char* name) const {
  if (!at(name).is_object()) {
    refuse(name, "an object");
  }
  return at(name);
}

const Json& Fields::list(const char* name, std::size_t least) const {
  if (!at(name).is_array() || at(name).size() < least) {
    refuse(name, text("a list of at least ", least));
  }
  return at(name);
}

} // namespace arforge
