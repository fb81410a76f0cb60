-- Counts the text of an answer (B26), for usage_reader.lua.
--
-- response_filter.py defines in front of it WEIGHTS of domain/billing/estimates.py, which says what they mean.

-- The class of a byte of text: the first byte of a character decides about it. 0: a byte within a character.
local LETTER, DIGIT, MARK, SPACE, BREAK, OTHER_LETTER, IDEOGRAPH, SYMBOL = 1, 2, 3, 4, 5, 6, 7, 8
local CLASSES = {}
for sign = 0, 255 do
  local class = MARK
  if sign >= 240 then class = SYMBOL
  elseif sign >= 227 then class = IDEOGRAPH
  elseif sign >= 192 then class = OTHER_LETTER
  elseif sign >= 128 then class = 0
  elseif sign == 32 then class = SPACE
  elseif sign < 32 then class = BREAK
  elseif sign >= 48 and sign <= 57 then class = DIGIT
  elseif sign >= 97 and sign <= 122 or sign >= 65 and sign <= 90 then class = LETTER
  end
  CLASSES[sign] = class
end
-- The class of a character that is escaped as \uXXXX, by its first digit; a surrogate pair is two characters.
local function class_of_escape(digit)
  if digit >= 48 and digit <= 50 then return OTHER_LETTER end
  return IDEOGRAPH
end

-- A counter of texts: the number of pieces of text, their likely tokens in thousandths, by WEIGHTS, and the number of
-- images. A word continues in the next piece.
local function counter(words)
  local pieces, tokens, before, length, images = 0, 0, 0, 0, 0
  -- Of a document that arrives in pieces: whether a string has begun, where the last one ends, whether there are parts,
  -- and what is read again with the next piece.
  local inside, counted, in_parts, rest = false, 0, false, ""
  local self = {}
  local word, part, number, gap, mark = WEIGHTS.word, WEIGHTS.part, WEIGHTS.number, WEIGHTS.gap, WEIGHTS.mark
  local blank, letter, ideograph, symbol = WEIGHTS.blank, WEIGHTS.letter, WEIGHTS.ideograph, WEIGHTS.symbol

  local function add_character(class)
    local kind = class == OTHER_LETTER and LETTER or class
    length = kind == before and length + 1 or 1
    if kind == LETTER then
      if length == 1 then
        tokens = tokens + word
      elseif length % 5 == 2 and length > 2 then
        tokens = tokens + part
      end
      if class == OTHER_LETTER then tokens = tokens + letter end
    elseif kind == DIGIT then
      if length % 3 == 1 then tokens = tokens + number end
      if length == 1 and before == SPACE then tokens = tokens + gap end
    elseif kind == MARK then
      if length % 2 == 1 then tokens = tokens + mark end
    elseif kind == SPACE then
      if length == 2 then tokens = tokens + blank end
    elseif kind == BREAK then
      if length == 1 then tokens = tokens + blank end
    elseif kind == IDEOGRAPH then
      tokens = tokens + ideograph
    else
      tokens = tokens + symbol
    end
    before = kind
  end

  -- Counts the string from `from` to before `stop`.
  local function add(text, from, stop)
    if stop <= from then return end
    pieces = pieces + 1
    local at = from
    while at < stop do
      local sign = byte(text, at)
      at = at + 1
      if sign == 92 and at < stop then
        local escape = byte(text, at)
        at = at + 1
        if escape == 117 then
          add_character(class_of_escape(byte(text, at) or 48))
          at = at + 4
        else
          -- A quote, a slash or a backslash; other letters stand for white space.
          add_character(CLASSES[escape] == LETTER and BREAK or MARK)
        end
      else
        local class = CLASSES[sign]
        if class > 0 then add_character(class) end
      end
    end
  end

  local function count_field(text, word, from)
    local found, arrays = false, false
    local at, behind = find_key(text, word, from)
    while at do
      local value, first = value_behind(text, behind)
      if value and first == 34 then
        local stop, on = closing(text, value + 1)
        add(text, value + 1, stop or on)
        found = true
        counted = stop or #text
        if not stop then
          inside, rest = true, sub(text, on)
          return found, arrays
        end
        behind = stop + 1
      elseif first == 91 then
        arrays = true
      end
      at, behind = find_key(text, word, behind)
    end
    return found, arrays
  end

  -- Counts the texts from `from` on.
  function self.count(text, from)
    local image = find(text, ";base64,", from, true)
    while image do
      images, counted = images + 1, image + 7
      image = find(text, ";base64,", counted + 1, true)
    end
    if inside then
      local stop, on = closing(text, from)
      add(text, from, stop or on)
      if not stop then
        rest = sub(text, on)
        return
      end
      inside, from, counted = false, stop + 1, stop
    end
    local skip
    for number = 1, #words do
      local word = words[number]
      if word ~= skip then
        local found, arrays = count_field(text, word, from)
        -- Some servers send the same text under both names, during a change from one to the other.
        if found and word == 'reasoning_content"' then skip = 'reasoning"' end
        if word == 'content"' then
          -- Text may be in parts: {"content": [{"type": "text", "text": ...}]}.
          if arrays and not find(text, '"logprobs"', from, true) then in_parts = true end
          if in_parts then count_field(text, 'text"', from) end
        elseif found and word == 'arguments"' then
          -- A model writes the name of a function, too.
          count_field(text, 'name"', from)
        end
      end
    end
  end

  -- Counts the texts of an event.
  function self.event(text, from)
    in_parts = false
    self.count(text, from)
    inside = false
  end

  -- Counts the texts of a document that arrives in pieces. A key that is cut is read with the next piece.
  function self.piece(text)
    if rest ~= "" then text, rest = rest .. text, "" end
    counted = 0
    self.count(text, 1)
    if not inside then rest = sub(text, math.max(counted + 1, #text - LONGEST_KEY)) end
  end

  function self.reset() pieces, tokens, images = 0, 0, 0 end
  function self.size() return tokens + 1000 * images end
  function self.text() return pieces .. " " .. tokens .. " " .. images end
  return self
end
