package token

import (
	"cmp"
	"encoding/json"
	"math"
	"path/filepath"

	"millrace.dev/millrace/internal/regular"
)

// imageRule is how a model cuts images up, as the preprocessor_config.json beside
// its tokenizer says.
type imageRule struct {
	fixed       int // tokens of any image; 0: they depend on its size
	side        int // of the square that makes a token, in pixels
	least, most int // pixels of the image after scaling
}

// What an image is taken to measure if that can't be seen, in pixels.
const (
	unseenWidth  = 1024
	unseenHeight = 768
)

// aroundImage is the two special tokens that mark an image in the prompt.
const aroundImage = 2

// Image estimates the tokens of an image, 0 pixels wide if its size is not known.
// ok is false if the model's rule is not known.
func (m *Model) Image(width, height int) (n int, ok bool) {
	if m.images == nil {
		return 0, false
	}
	return m.images.tokens(width, height), true
}

func (r *imageRule) tokens(width, height int) int {
	if r.fixed > 0 {
		return r.fixed
	}
	if width <= 0 || height <= 0 {
		width, height = unseenWidth, unseenHeight
	}
	w, h, side := float64(width), float64(height), float64(r.side)
	across, down := math.Max(1, math.Round(w/side)), math.Max(1, math.Round(h/side))
	square := side * side
	switch pixels := across * down * square; {
	case pixels > float64(r.most):
		scale := math.Sqrt(float64(r.most) / (w * h))
		across, down = math.Max(1, math.Floor(w*scale/side)), math.Max(1, math.Floor(h*scale/side))
	case pixels < float64(r.least):
		scale := math.Sqrt(float64(r.least) / (w * h))
		across, down = math.Ceil(w*scale/side), math.Ceil(h*scale/side)
	}
	return int(across*down) + aroundImage
}

// preprocessor is what of a preprocessor_config.json says how images are cut up.
type preprocessor struct {
	Patch  int  `json:"patch_size"`
	Merge  int  `json:"merge_size"`
	Least  int  `json:"min_pixels"`
	Most   int  `json:"max_pixels"`
	Tokens int  `json:"image_seq_length"`
	Size   area `json:"size"`
	Crop   area `json:"crop_size"`
}

type area struct {
	Height   int `json:"height"`
	Width    int `json:"width"`
	Shortest int `json:"shortest_edge"` // for models that scale: pixels in all
	Longest  int `json:"longest_edge"`
}

// Bounds of the models that scale images, in pixels, where the file says none.
const (
	leastPixels = 56 * 56
	mostPixels  = 28 * 28 * 1280
)

// imagesOf reads the rule from a tokenizer's folder, nil if there is none that we
// know. Without it images are still estimated, only less well.
func imagesOf(dir string) *imageRule {
	text, err := regular.Read(filepath.Join(dir, "preprocessor_config.json"), maxBeside)
	if err != nil {
		return nil
	}
	return readImageRule(text)
}

func readImageRule(text []byte) *imageRule {
	var p preprocessor
	if json.Unmarshal(text, &p) != nil || !p.sane() {
		return nil
	}
	frame := p.Crop
	if frame.Height == 0 {
		frame = p.Size
	}
	switch {
	case p.Tokens > 0:
		return &imageRule{fixed: p.Tokens}
	case p.Merge > 0 && p.Patch > 0:
		r := &imageRule{side: p.Patch * p.Merge, least: cmp.Or(p.Least, p.Size.Shortest, leastPixels), most: cmp.Or(p.Most, p.Size.Longest, mostPixels)}
		r.most = max(r.most, r.side*r.side)
		r.least = min(r.least, r.most)
		return r
	case p.Patch > 0 && frame.Height >= p.Patch && frame.Width >= p.Patch:
		return &imageRule{fixed: (frame.Height / p.Patch) * (frame.Width / p.Patch)}
	}
	return nil
}

// sane bounds the numbers of the file.
func (p *preprocessor) sane() bool {
	for _, n := range []int{p.Patch, p.Merge, p.Size.Height, p.Size.Width, p.Crop.Height, p.Crop.Width, p.Tokens} {
		if n < 0 || n > 1<<14 {
			return false
		}
	}
	for _, n := range []int{p.Least, p.Most, p.Size.Shortest, p.Size.Longest} {
		if n < 0 || n > 1<<28 {
			return false
		}
	}
	return true
}
