// Classify images in PPM form (P6, 8 bits): classify MODEL_FOLDER FILE...   (- for standard input)
#include "edgeship_classifier.hpp"

#include <iostream>

// Read the next image of a stream; return false at its end.
static bool read_ppm(std::istream& stream, std::vector<std::uint8_t>& pixels, int& height, int& width) {
    std::string magic;
    if (!(stream >> magic)) return false;
    int numbers[3] = {};
    for (int& number : numbers) {
        std::string comment;
        while ((stream >> std::ws).peek() == '#') std::getline(stream, comment);
        if (!(stream >> number)) throw std::runtime_error("the PPM header is damaged");
    }
    width = numbers[0], height = numbers[1];
    if (magic != "P6" || width < 1 || height < 1 || width > 65535 || height > 65535 || numbers[2] != 255)
        throw std::runtime_error("expected a PPM image of 8 bits (P6, 255)");
    stream.get();
    pixels.resize(std::size_t(3) * width * height);
    if (!stream.read(reinterpret_cast<char*>(pixels.data()), std::streamsize(pixels.size())))
        throw std::runtime_error("the image is truncated");
    return true;
}

int main(int count, char** arguments) try {
    if (count < 3) {
        std::cerr << "usage: classify MODEL_FOLDER FILE...\n";
        return 2;
    }
    std::cout.precision(9);
    edgeship::Classifier classifier(arguments[1]);
    std::vector<std::uint8_t> pixels;
    int height = 0, width = 0;
    for (int i = 2; i < count; ++i) {
        std::string name = arguments[i];
        std::ifstream file;
        if (name != "-") file.open(name, std::ios::binary);
        if (name != "-" && !file) throw std::runtime_error("cannot read " + name);
        std::istream& stream = name == "-" ? std::cin : file;
        while (read_ppm(stream, pixels, height, width)) {
            auto best = classifier({pixels.data(), height, width, edgeship::Color::rgb}).top(1)[0];
            std::cout << best.index << '\t' << best.probability << '\t' << best.label << '\n';
        }
    }
    return 0;
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
}
