// What programs ask a bundle for, whichever kind it is of.
#pragma once

#include <arforge.hpp>

#include <vector>

// Numbers that features are cut out of; requests refer to them.
inline const std::vector<float>& numbers() {
  static const std::vector<float> found = [] {
    std::vector<float> made(1 << 16);
    for (std::size_t index = 0; index < made.size(); index++) {
      made[index] = static_cast<float>(index * 2654435761U % 1024) / 2048.0F - 0.25F;
    }
    return made;
  }();
  return found;
}

// Ids that prompts are cut out of, likewise.
inline const std::vector<std::int64_t>& words(std::int64_t vocabulary) {
  static const std::vector<std::int64_t> found = [&] {
    std::vector<std::int64_t> made(1 << 10);
    for (std::size_t index = 0; index < made.size(); index++) {
      made[index] = static_cast<std::int64_t>(index * 2654435761U % 1024) % vocabulary;
    }
    return made;
  }();
  return found;
}

// Images of different classes, or of prompts of different lengths, from number `first` on.
inline arforge::Request request_for(const arforge::Facts& facts, std::int64_t images, std::int64_t first) {
  arforge::Request request;
  for (std::int64_t image = first; image < first + images; image++) {
    if (facts.classes > 0) {
      request.classes.push_back(image % 7);
    } else if (facts.id_vocabulary > 0) { // room for the ids that begin the image, which are added
      const std::int64_t length = 1 + image * 5 % (facts.id_slots - 8);
      request.ids.push_back({words(facts.id_vocabulary).data() + image % 7, length});
    } else {
      const std::int64_t length = 1 + image * 5 % facts.feature_slots;
      request.features.push_back({numbers().data() + image % 7, length, facts.feature_width});
    }
    request.seeds.push_back(static_cast<std::uint64_t>(image));
  }
  return request;
}
