fn key_unit(row: u32, unit: u32) -> vec4<f32> {
    return bitcast<f32>(keys[row + UNITS + unit / 8u]) * vec4<f32>(unpack4xI8(keys[row + unit]));
}

fn value_unit(row: u32, unit: u32) -> vec4<f32> {
    return bitcast<f32>(values[row + UNITS + unit / 8u]) * vec4<f32>(unpack4xI8(values[row + unit]));
}
