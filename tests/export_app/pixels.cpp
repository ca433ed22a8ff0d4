// Write the pixels (H, W, C) that the header makes of PPM-like input: "HEIGHT WIDTH ORDER STRIDE\n" and data.
#include "edgeship_classifier.hpp"

#include <iostream>

int main(int, char** arguments) try {
    edgeship::Description description(arguments[1]);
    int height, width, order;
    std::size_t stride;
    while (std::cin >> height >> width >> order >> stride) {
        std::cin.get();
        std::vector<char> data(stride * std::size_t(height));
        std::cin.read(data.data(), std::streamsize(data.size()));
        auto* bytes = reinterpret_cast<std::uint8_t*>(data.data());
        auto out = description.pixels({bytes, height, width, edgeship::Color(order), stride});
        auto inputs = description.normalize(out, true);
        std::cout.write(reinterpret_cast<char*>(out.data()), std::streamsize(out.size()));
        std::cout.write(reinterpret_cast<char*>(inputs.data()), std::streamsize(inputs.size() * sizeof(float)));
    }
    return 0;
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
}
